"""The `vllm` engine: a Hugging Face model directory under vLLM, in this process and on all GPUs it sees.

Prompts are Fathom's own token ids and every chain has its own seed, so what else is in the batch
decides no draw (vLLM's kernels still round differently in other batches). Not a server, and not a
fleet: one copy of the model, split over `tensor_parallel` GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fathom.engines import Completion, Request, VllmConfig, chain_seed, engine_name
from fathom.engines.text import ModelText
from fathom.errors import InputError, WorkError
from fathom.records import Sampling


class VllmEngine:
    """See the module docstring. Raises InputError where vLLM isn't installed, WorkError where it can't start."""

    def __init__(self, model_dir: Path, config: VllmConfig):
        vllm = _import_vllm()
        self.name = engine_name(config, model_dir)
        self.device = "cuda"
        self._text = ModelText(model_dir, self.name)
        self._sampling_params = vllm.SamplingParams
        try:
            self._llm = vllm.LLM(
                model=str(model_dir),
                tensor_parallel_size=config.tensor_parallel or max(1, torch.cuda.device_count()),
                gpu_memory_utilization=config.gpu_memory_utilization,
                max_model_len=config.max_model_len,
                kv_cache_dtype=config.kv_cache_dtype,
                seed=0,
            )
        except Exception as error:
            raise WorkError(f"{model_dir}: vLLM can't start it ({_first_line(error)})") from error
        self._positions = self._llm.llm_engine.model_config.max_model_len

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions in the order of the requests, once all have ended (vLLM orders the work itself)."""
        prompts = self._text.prompts(requests, sampling.max_tokens, self._positions)
        chains = [
            (request, index, prompt)
            for request, prompt in zip(requests, prompts, strict=True)
            for index in range(request.first, request.first + request.samples)
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for _, _, prompt in chains],
            [self._params(sampling, request.key, index) for request, index, _ in chains],
            use_tqdm=False,
        )
        for (request, index, prompt), output in zip(chains, outputs, strict=True):
            yield self._text.completion(request, index, len(prompt), list(output.outputs[0].token_ids))

    def _params(self, sampling: Sampling, key: str, index: int) -> object:
        return self._sampling_params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=chain_seed(sampling.seed, key, index),
            stop_token_ids=self._text.stops,
            detokenize=False,
        )

    def close(self) -> None:
        """Drop the model; vLLM's own processes end with it."""
        del self._llm


def _import_vllm():
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise InputError("engine vllm: vLLM is not installed; it comes with `pip install 'fathom[vllm]'`") from None
    return vllm


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
