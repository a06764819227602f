"""The `transformers` engine: any Hugging Face causal model, continuous batching, on a CPU or one GPU.

The engine opens the model; what runs is `running.py`. Draws come from a counter-based hash of (seed, request key,
sample, position): what else is in the batch does not matter (but for the rounding of matrix products, see
`slots.py`). Full attention only. Larger models belong to vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from fathom.engines import Completion, Request, TransformersConfig, engine_name
from fathom.engines.running import RunningBatch
from fathom.engines.session import completions
from fathom.engines.slots import ATTENTION
from fathom.engines.text import ModelText
from fathom.errors import InputError
from fathom.loading import changed_logits, load_causal_model
from fathom.records import Sampling

SLOTS = {"cpu": 256, "cuda": 2048}
"""Chains that decode together where the recipe doesn't say."""


class TransformersEngine:
    """See the module docstring. Raises InputError for a directory that holds no causal model, or one it would get wrong.

    logprobs: whether completions carry the log-probability of each token, of the whole distribution at temperature 1.
    """

    def __init__(self, model_dir: Path, config: TransformersConfig, logprobs: bool = False):
        self.name = engine_name(config, model_dir)
        self.text = ModelText(model_dir, self.name)
        cuda = config.device != "cpu" and torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise InputError(
                "engine.device: cuda: there is no GPU that PyTorch can use here (`fathom doctor` says more)"
            )
        self.device = "cuda" if cuda else "cpu"
        dtype = {"auto": torch.bfloat16 if cuda else torch.float32}.get(config.dtype) or getattr(torch, config.dtype)
        self.model = load_causal_model(model_dir, ATTENTION, dtype)
        _check_supported(self.model.config, model_dir)
        self.model.to(self.device).eval()
        _check_finite(self.model, model_dir)
        self.slots = config.slots or SLOTS[self.device]
        self.logprobs = logprobs
        self.version = 0

    @torch.no_grad()
    def push(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take over a policy's weights, by parameter name, from memory; `version` is what the engine serves from now on.

        Raises KeyError for a parameter that is missing.
        """
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they end. Raises InputError where a prompt and `max_tokens` exceed the model's positions."""
        yield from completions(RunningBatch(self, patient=True), requests, sampling)

    def session(self) -> RunningBatch:
        """A running batch that tells every token as it comes."""
        return RunningBatch(self)

    def close(self) -> None:
        """Free the model."""
        del self.model


def _check_finite(model: PreTrainedModel, model_dir: Path) -> None:
    """Refuse weights from which every chain would come out as noise."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{model_dir}: tensor {name!r} holds values that are no finite numbers")


def _check_supported(config: PretrainedConfig, model_dir: Path) -> None:
    """Refuse what this attention or the bare output layer would silently compute otherwise."""
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        windows.add(f"sliding_window {config.sliding_window}")
    if found := sorted(windows) + changed_logits(config):
        what = ", ".join(found)
        raise InputError(
            f"{model_dir}: the transformers engine has full attention and plain logits only, not {what}; use kind vllm"
        )
