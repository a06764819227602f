"""The `vllm` engine: a Hugging Face model directory under vLLM, on GPUs of this machine.

The model lives in vLLM's own process, so it goes on writing while its chains are graded here, and a trainer in
this process gives it new weights from memory. Prompts are Fathom's own token ids and every chain has its own seed,
so what else is in the batch decides no draw (vLLM's kernels still round differently in other batches). Not a
server, and not a fleet: one copy of the model, split over `tensor_parallel` GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.engines import Completion, Request, VllmConfig, engine_name
from fathom.engines.session import completions
from fathom.engines.text import ModelText
from fathom.engines.vllm_session import VllmSession
from fathom.engines.vllm_worker import as_handles, release_handles
from fathom.errors import InputError, WorkError, first_line
from fathom.records import Sampling

SEEDS_IN_BATCH = ("Qwen2ForCausalLM",)
"""Architectures that get vLLM's second model runner, beside those to which it gives it itself (Llama, Mistral, Qwen3 and
others): it draws all seeded rows of a batch in one kernel, where the first one launches a kernel per chain and token."""

INT8 = "int8_per_token_head"
"""The `kv_cache_dtype` that Fathom's own attention computes, on an NVIDIA GPU."""


class VllmEngine:
    """See the module docstring. Raises InputError where vLLM isn't installed, WorkError where it can't start.

    logprobs: whether completions carry the log-probability of each token, of the whole distribution at temperature 1.
    """

    def __init__(self, model_dir: Path, config: VllmConfig, logprobs: bool = False):
        vllm = _import_vllm()
        self.name = engine_name(config, model_dir)
        self.device = "cuda"
        self.text = ModelText(model_dir, self.name)
        self.logprobs = logprobs
        self._empty = False
        """Whether weights and cache were given back."""
        with _environment(model_dir, config.gpus):
            try:
                self._llm = vllm.LLM(**_arguments(model_dir, config))
            except Exception as error:
                raise WorkError(f"{model_dir}: vLLM can't start it ({first_line(error)})") from error
        self._core = self._llm.llm_engine
        self._positions = self._core.model_config.max_model_len

    def session(self) -> VllmSession:
        """A running batch, for one thread; one at a time. Raises WorkError while the engine sleeps, or when it has died."""
        return self._session(whole=False)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they end. Raises InputError where a prompt and `max_tokens` exceed the model's positions."""
        session = self._session(whole=True)
        try:
            yield from completions(session, requests, sampling)
        finally:
            session.close()

    def _session(self, whole: bool) -> VllmSession:
        if self._empty:
            raise WorkError(f"{self.name}: the engine gave its weights back; wake and push first")
        if not self.alive:
            raise WorkError(f"{self.name}: vLLM's process has ended; its own words stand above")
        return VllmSession(self._core, self.text, self._positions, whole, self.logprobs)

    @property
    def alive(self) -> bool:
        """Whether vLLM's process, where it has one of its own, still works."""
        try:
            getattr(self._core.engine_core, "ensure_alive", lambda: None)()
        except Exception:
            return False
        return True

    def push(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take over a policy's weights, by parameter name, from memory; `version` is what the engine serves from now on.

        Whole tensors of any floating type, on a GPU or a CPU; nothing of them is kept. Chains that run go on with the new
        weights, over keys and values computed anew. Raises WorkError for a parameter that is missing or doesn't fit.
        """
        try:
            self._llm.collective_rpc("fathom_receive", args=(as_handles(weights), version))
        except Exception as error:
            raise WorkError(f"{self.name}: new weights were not taken over ({first_line(error)})") from error
        self._core.reset_prefix_cache(reset_running_requests=True)
        release_handles()
        self._empty = False

    @property
    def version(self) -> int:
        """Of the weights that are served, as the workers say it; 0 as loaded from disk."""
        return min(self._llm.collective_rpc("fathom_serves"))

    def sleep(self) -> None:
        """Give back the GPU memory of weights and cache; needs the configuration's `sleep`. Running chains are lost."""
        self._empty = True
        self._llm.sleep(level=2)

    def wake(self) -> None:
        """Take the memory again. The weights are lost: `push` before generating."""
        self._llm.wake_up()

    def close(self) -> None:
        """End vLLM's process, and give its memory back."""
        self._core.engine_core.shutdown()
        del self._core, self._llm


def _arguments(model_dir: Path, config: VllmConfig) -> dict[str, Any]:
    gpus = len(config.gpus) if config.gpus else torch.cuda.device_count()
    return {
        "model": str(model_dir),
        "skip_tokenizer_init": True,
        "tensor_parallel_size": config.tensor_parallel or max(1, gpus),
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_model_len": config.max_model_len,
        "kv_cache_dtype": config.kv_cache_dtype,
        "enable_sleep_mode": config.sleep,
        "logprobs_mode": "raw_logprobs",
        "worker_extension_cls": "fathom.engines.vllm_worker.WeightReceiver",
        "scheduler_cls": "fathom.engines.vllm_scheduler.WholeChainScheduler",
        "seed": 0,
        **(_own_attention() if config.kv_cache_dtype == INT8 and torch.version.cuda else {}),
        **config.options,
    }


def _own_attention() -> dict[str, Any]:
    return {"attention_backend": "CUSTOM", "worker_extension_cls": "fathom.engines.vllm_int8.WorkerExtension"}


@contextlib.contextmanager
def _environment(model_dir: Path, gpus: Sequence[int] | None) -> Iterator[None]:
    """What vLLM's processes, started inside, read from the environment; this process keeps its own."""
    given = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    if set(_architectures(model_dir)) & set(SEEDS_IN_BATCH) and "VLLM_USE_V2_MODEL_RUNNER" not in os.environ:
        given["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        ids = seen.split(",")
        if max(gpus) >= len(ids):
            raise InputError(f"engine.gpus: {max(gpus)}, but this machine shows {len(ids)} GPUs, counted from 0")
        given["CUDA_VISIBLE_DEVICES"] = ",".join(ids[gpu] for gpu in gpus)
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _architectures(model_dir: Path) -> list[str]:
    return json.loads((model_dir / "config.json").read_text()).get("architectures") or []


def _import_vllm():
    # Read at the import; what a command writes to stdout is its own.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise InputError("engine vllm: vLLM is not installed; it comes with `pip install 'fathom[vllm]'`") from None
    return vllm
