"""What one sees of a training run while it runs: speed, use of the hardware, memory, dollars.

Everything that depends on the clock goes here and never into `train_log.jsonl`, whose bytes a
resumed run repeats. It goes to the progress line, to the stage's log as JSON lines, and to a tracker
where the recipe names one. Stopping on a bad loss is the loop's business.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fathom.errors import InputError
from fathom.ledger import Meter, dollars
from fathom.physics import DEVICES, ModelShape
from fathom.train.config import TrackingConfig

WINDOW = 20
"""Steps over which speed is averaged; the first step of a process, which compiles and warms up, is left out."""

COMMON = {"step", "epoch", "loss", "lr", "grad_norm", "tokens"}
"""Keys that every row of a training log has; a method's own measures stand beside them."""

SYMBOLS = (("T", 1e12), ("G", 1e9), ("M", 1e6))


class Tracker(Protocol):
    """Where figures go: one of the services below."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


class Watch:
    """Measures one run of the loop.

    shape: of the model, for its arithmetic; None where it isn't known (then no FLOP/s are shown).
    say: gets every step's figures as a JSON line. devices: how many GPUs share the step. more: further figures of the step.
    """

    def __init__(
        self,
        shape: ModelShape | None,
        meter: Meter,
        tracker: Tracker | None = None,
        say: Callable[[str], None] = lambda line: None,
        devices: int = 1,
        more: Callable[[], Mapping[str, float]] = dict,
    ):
        self._shape, self._meter, self._tracker, self._say = shape, meter, tracker, say
        self._more = more
        self._peak = (peak_flops() or 0.0) * devices
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)
        self._last: float | None = None
        self._spent_at_start = meter.spent()
        self._steps = 0

    def step(self, row: Mapping[str, Any], lengths: Sequence[int], total_steps: int) -> str:
        """Take note of a finished step; returns the progress line. lengths: tokens of each document of the step."""
        now = time.perf_counter()
        if self._last is not None:
            flops = sum(n * self._shape.training_flops(n) for n in lengths) if self._shape else 0.0
            self._recent.append((now - self._last, sum(lengths), flops))
        self._last = now
        self._steps += 1
        values = {**self.values(row, total_steps), **self._more()}
        self._say(json.dumps({"step": row["step"], **{k: float(f"{v:.6g}") for k, v in values.items()}}))
        if self._tracker:
            self._tracker.log(values, row["step"])
        return line(values)

    def values(self, row: Mapping[str, Any], total_steps: int) -> dict[str, float]:
        """The figures of the last steps under the names that trackers get."""
        spent = self._meter.spent()
        values = {
            "loss": row["loss"],
            "grad_norm": row["grad_norm"],
            "learning_rate": row["lr"],
            **{name: row[name] for name in row if name not in COMMON},
            "usd": spent,
            "usd_to_go": (spent - self._spent_at_start) / self._steps * (total_steps - row["step"]),
        }
        seconds = sum(spent for spent, _, _ in self._recent)
        if seconds:
            values["tokens_per_second"] = sum(tokens for _, tokens, _ in self._recent) / seconds
            if flops := sum(flops for _, _, flops in self._recent):
                values["model_flops_per_second"] = flops / seconds
                if self._peak:
                    values["mfu"] = flops / seconds / self._peak
        if torch.cuda.is_available():
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def close(self) -> None:
        """Tell the tracker that the run ended."""
        if self._tracker:
            self._tracker.finish()


def line(values: Mapping[str, float]) -> str:
    """The progress line: loss, speed, use of the hardware, dollars."""
    parts = [f"loss {values['loss']:.3f}"]
    if "accuracy" in values:
        parts.append(f"{values['accuracy']:.0%} of pairs right by {values['margin']:.3g} on average")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if flops := values.get("model_flops_per_second"):
        symbol, unit = next((s for s in SYMBOLS if flops >= s[1]), SYMBOLS[-1])
        share = f" ({values['mfu']:.0%} of the device)" if "mfu" in values else ""
        parts.append(f"{flops / unit:.3g} {symbol}FLOP/s{share}")
    if "peak_gib" in values:
        parts.append(f"{values['peak_gib']:.0f} GiB")
    if values["usd"]:
        parts.append(f"{dollars(values['usd'])} so far, {dollars(values['usd_to_go'])} to go")
    return " · ".join(parts)


def peak_flops() -> float | None:
    """Dense bfloat16 FLOP/s of the GPU in use by its data sheet; None on a CPU and for a GPU that isn't listed."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next((device.tflops * 1e12 for key, device in DEVICES.items() if key in name and key != "cpu"), None)


def shape_of(config: Any) -> ModelShape | None:
    """The shape of a transformers configuration; None where it is not a plain decoder's."""
    try:
        return ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
        )
    except AttributeError:
        return None


# ------------------------------------------------------------------------------ trackers


def open_tracker(config: TrackingConfig | None, about: Mapping[str, Any]) -> Tracker | None:
    """The tracker that a recipe names. about: settings of the run, which the tracker keeps with it.

    Raises InputError when its package is not installed.
    """
    if config is None:
        return None
    try:
        return _TRACKERS[config.to](config, dict(about))
    except ImportError as error:
        raise InputError(f"tracking: {config.to} is not installed (pip install {config.to}): {error}") from None


class _WandbLike:
    """W&B, and trackio, which has its interface."""

    def __init__(self, config: TrackingConfig, about: dict[str, Any]):
        import importlib

        self._module = importlib.import_module(config.to)
        self._run = self._module.init(project=config.project, name=config.run, config=about)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def finish(self) -> None:
        self._module.finish()


class _TensorBoard:
    def __init__(self, config: TrackingConfig, about: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(f"{config.directory}/{config.project}/{config.run or 'run'}")
        self._writer.add_text("config", f"```\n{json.dumps(about, indent=1, default=str)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Mlflow:
    def __init__(self, config: TrackingConfig, about: dict[str, Any]):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(config.project)
        mlflow.start_run(run_name=config.run)
        mlflow.log_params({name: str(value)[:500] for name, value in about.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        self._mlflow.end_run()


_TRACKERS = {"wandb": _WandbLike, "trackio": _WandbLike, "tensorboard": _TensorBoard, "mlflow": _Mlflow}
