"""Linear merge of models: a weighted mean of their weights, tensor by tensor.

Reads one tensor of each parent at a time and writes shards of bounded size, so memory is that of
one shard and one tensor, whatever the size of the models. Parents must share tokenizer, chat
template, tensor names, shapes and dtypes. It builds no model class and needs no accelerator.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.merge_config import MergeConfig
from fathom.tokens import load_tokenizer, template_hash
from fathom.weights import TensorEntry, os_errors, tensor_entries

CONFIG_KEYS_THAT_MAY_DIFFER = {"_name_or_path", "transformers_version", "use_cache"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def run_merge(inputs: dict[str, Any], config: MergeConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Merge the models into `out`, a plain Hugging Face directory with a card that names the parents.

    Raises InputError, naming both parents and the difference, when they can't be averaged.
    """
    parents = [Path(path) for path in inputs["models"]]
    entries = compare_parents(parents, config.models)
    tensors = list(entries[0].values())
    index: dict[str, str] = {}
    shards = split_shards(tensors, config.shard_bytes)
    for number, shard in enumerate(shards, 1):
        meter.check()
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        merged = {entry.name: mean_tensor([e[entry.name] for e in entries], config.shares()) for entry in shard}
        with os_errors(out):
            save_file(merged, out / name, metadata={"format": "pt"})
        index |= {entry.name: name for entry in shard}
        meter.progress(number, len(shards), "shards")
    if len(shards) > 1:
        total = sum(entry.bytes for entry in tensors)
        _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
        if (parents[0] / name).is_file():
            shutil.copyfile(parents[0] / name, out / name)
    (out / "README.md").write_text(model_card(config), encoding="utf-8")
    return {"tensors": len(tensors), "bytes": sum(entry.bytes for entry in tensors), "shards": len(shards)}


def compare_parents(parents: Sequence[Path], names: Sequence[str]) -> list[dict[str, TensorEntry]]:
    """The tensors of every parent by name; raises InputError at the first difference that forbids averaging."""
    entries = [tensor_entries(parent) for parent in parents]
    for other in range(1, len(parents)):
        for difference in _differences(parents[0], parents[other], entries[0], entries[other]):
            raise InputError(
                f"can't merge {names[0]!r} ({parents[0]}) with {names[other]!r} ({parents[other]}): {difference}"
            )
    return entries


def _differences(
    one: Path, two: Path, tensors_one: dict[str, TensorEntry], tensors_two: dict[str, TensorEntry]
) -> Iterator[str]:
    yield from _tokenizer_differences(one, two)
    config_one, config_two = _config(one), _config(two)
    for key in sorted({*config_one, *config_two} - CONFIG_KEYS_THAT_MAY_DIFFER):
        if config_one.get(key) != config_two.get(key):
            yield f"config.json: {key} is {config_one.get(key)!r} and {config_two.get(key)!r}"
    for name in sorted({*tensors_one, *tensors_two}):
        if name not in tensors_one or name not in tensors_two:
            yield f"tensor {name!r} is only in {one if name in tensors_one else two}"
        elif tensors_one[name].shape != tensors_two[name].shape:
            yield f"tensor {name!r} has the shapes {tensors_one[name].shape} and {tensors_two[name].shape}"
        elif tensors_one[name].dtype != tensors_two[name].dtype:
            yield f"tensor {name!r} has the dtypes {tensors_one[name].dtype} and {tensors_two[name].dtype}"


def _tokenizer_differences(one: Path, two: Path) -> Iterator[str]:
    tokenizer_one, tokenizer_two = load_tokenizer(one), load_tokenizer(two)
    ids_one, ids_two = tokenizer_one.get_vocab(), tokenizer_two.get_vocab()
    if len(ids_one) != len(ids_two):
        yield f"the vocabularies have {len(ids_one)} and {len(ids_two)} tokens"
    for token in sorted({*ids_one, *ids_two}):
        if ids_one.get(token) != ids_two.get(token):
            yield f"token {token!r} has the ids {ids_one.get(token)} and {ids_two.get(token)}"
    hash_one, hash_two = template_hash(tokenizer_one), template_hash(tokenizer_two)
    if hash_one != hash_two:
        yield f"the chat templates or special tokens differ (hashes {hash_one[:12]} and {hash_two[:12]})"
    if tokenizer_one.backend_tokenizer.to_str() != tokenizer_two.backend_tokenizer.to_str():
        yield "the tokenizers have one vocabulary and cut text differently (tokenizer.json)"


def mean_tensor(parts: Sequence[TensorEntry], shares: Sequence[float]) -> torch.Tensor:
    """sum of share * tensor, accumulated in float32 (float64 for float64), rounded once to the parents' dtype.

    Integer tensors must be equal in all parents and are copied.
    """
    total = None
    for entry, share in zip(parts, shares, strict=True):
        with safe_open(entry.file, framework="pt") as file:
            tensor = file.get_tensor(entry.name)
        if not tensor.is_floating_point():
            if total is not None and not torch.equal(total, tensor):
                raise InputError(f"{entry.file}: tensor {entry.name!r} of integers differs from the other parent's")
            total = tensor
            continue
        if tensor.dtype.itemsize == 1:
            raise InputError(f"{entry.file}: tensor {entry.name!r} has eight bits; only wider ones can be averaged")
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        total = wide.mul(share) if total is None else total.add_(wide, alpha=share)
    return total.to(tensor.dtype)


def split_shards(tensors: Sequence[TensorEntry], shard_bytes: int) -> list[list[TensorEntry]]:
    """Consecutive tensors in shards of at most `shard_bytes`; a larger tensor is a shard of its own."""
    shards: list[list[TensorEntry]] = []
    room = 0
    for entry in tensors:
        if not shards or entry.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.bytes
    return shards


def model_card(config: MergeConfig) -> str:
    """README.md of the merged model."""
    rows = "".join(f"| `{name}` | {share:.4g} |\n" for name, share in zip(config.models, config.shares(), strict=True))
    return (
        "---\nlibrary_name: transformers\ntags:\n- merge\n---\n"
        "# Linear merge\n\n"
        "Every tensor is the weighted mean of the parents' tensors, accumulated in float32.\n"
        "Tokenizer, chat template and configuration are those of the first parent; the others' are equal.\n\n"
        f"| parent | weight |\n|---|---|\n{rows}"
    )


def _config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
