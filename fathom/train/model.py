"""The model as training sees it: load a Hugging Face directory, log-probabilities of a pack, write it back.

Works on any causal language model of transformers whose attention is pluggable and whose head is a
plain linear layer. It does not optimize anything and does not generate.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fathom.errors import InputError
from fathom.loading import changed_logits, load_causal_model
from fathom.train.attention import NAME, Documents
from fathom.train.batch import Pack
from fathom.train.losses import token_logprobs
from fathom.weights import os_errors, tensor_entries

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

KEPT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
"""Files of the base that its descendants carry unchanged."""


def load_model(
    model_dir: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: object | None = None,
) -> PreTrainedModel:
    """The model of a local Hugging Face directory, in training mode, with document-isolated attention.

    quantization: a transformers quantization configuration for frozen weights; they are put on the device as they load.
    Raises InputError for what `load_causal_model` refuses, and for an architecture whose logits are not a plain linear head.
    """
    quantized = {"quantization_config": quantization, "device_map": {"": device}} if quantization else None
    model = load_causal_model(model_dir, NAME, dtype, quantized)
    if changed := changed_logits(model.config):
        raise InputError(f"{model_dir}: training has plain logits only, not {', '.join(changed)}")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise InputError(f"{model_dir}: training has plain logits only, not a head with a bias")
    return (model if quantization else model.to(device)).train()


def pack_logprobs(model: PreTrainedModel, pack: Pack) -> torch.Tensor:
    """log p of every predicted token of the pack: float32, shape N. The head runs on those places only."""
    device = model.device
    hidden = model.base_model(
        input_ids=pack.ids_T[None].to(device),
        position_ids=pack.positions_T[None].to(device),
        documents=Documents.of(pack.lengths, device),
        use_cache=False,
    ).last_hidden_state[0]
    predicting = hidden.index_select(0, pack.sources_N.to(device))
    return token_logprobs(predicting, model.get_output_embeddings().weight, pack.targets_N.to(device))


def save_model(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], base_dir: Path, out: Path) -> None:
    """Write `model` with these weights (by parameter name) to `out` as a plain Hugging Face directory.

    Each tensor has its dtype on the base's disk, tied tensors are stored once; config, tokenizer,
    chat template and generation config are the base's, byte for byte.
    """
    on_disk = tensor_entries(base_dir)
    usual = next(iter(on_disk.values())).dtype
    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    owner = {id(parameters[name]): name for name in weights}
    stored = {id(parameters[name]) for name in on_disk if name in parameters}
    state = {}
    for name, tensor in model.state_dict().items():
        place = id(parameters.get(name))
        if name in on_disk or place not in stored:
            dtype = TORCH_DTYPES[on_disk[name].dtype if name in on_disk else usual]
            state[name] = (weights[owner[place]] if place in owner else tensor).to("cpu", dtype)
    with os_errors(out):
        model.save_pretrained(out, state_dict=state, max_shard_size="5GB")
    for name in KEPT_FILES:
        if (Path(base_dir) / name).is_file():
            shutil.copyfile(Path(base_dir) / name, Path(out) / name)
