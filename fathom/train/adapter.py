"""LoRA and QLoRA: train small matrices beside frozen ones, for cards that can't hold all gradients.

peft puts the adapters in and trains as the model's own parameters do; what is written in the end is
a plain model: the base's weights from disk plus the adapters' product, so nothing that was
quantized for training gets into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fathom.errors import InputError
from fathom.train.config import AdapterConfig
from fathom.train.model import load_model

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""The QLoRA paper's storage (arXiv 2305.14314): 4-bit normal floats, their scales quantized too."""


def load_adapted(
    base: Path, config: AdapterConfig, device: torch.device, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """The base with fresh adapters, of which only these are trained, in float32.

    Raises InputError when peft (or bitsandbytes, for quantized weights) is not installed, when the model has
    none of the target modules, and for targets outside its layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("adapter: peft is not installed (pip install 'fathom[gpu]')") from None
    model = load_model(base, device, dtype, quantization=_quantization(dtype) if config.quantize else None)
    outside = {model.get_input_embeddings(): "embedding", model.get_output_embeddings(): "head"}
    for name, module in model.named_modules():
        if module in outside and f".{name}".endswith(tuple(f".{target}" for target in config.targets)):
            raise InputError(f"adapter.targets: {name} is the {outside[module]}; adapters train layers only")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(seed)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=list(config.targets))
    try:
        inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise InputError(f"adapter.targets: {' '.join(str(error).split())}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model.train()


def _quantization(dtype: torch.dtype) -> object:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401  (transformers' own message takes a page)
    except ImportError:
        raise InputError("adapter.quantize: bitsandbytes is not installed (pip install bitsandbytes)") from None
    return BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)


@torch.no_grad()
def merged(base: Path, config: AdapterConfig, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The base from disk in float32 on the CPU, plus alpha / rank * B @ A of every adapter in `weights` (by name)."""
    model = load_model(base, "cpu", torch.float32)
    modules = dict(model.named_modules())
    for name, down in weights.items():
        place, marker, rest = name.partition(".lora_A.")
        if marker:
            up = weights[f"{place}.lora_B.{rest}"]
            modules[place].weight += config.alpha / config.rank * (up.cpu().float() @ down.cpu().float())
    return model
