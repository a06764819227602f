"""What is inside a model directory's safetensors files, read from their headers and checked.

It says which tensors there are, in which file, with which dtype and shape, before anything is
loaded. It does not load models, knows no architecture, and imports no torch. Pickled weights
(.bin, .pt) do not count as weights, because reading them runs code.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fathom.errors import InputError

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. dtype is safetensors' name for it, as in "BF16"; offset: its first byte in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def bytes(self) -> int:
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a Hugging Face model directory, sorted by name.

    Raises InputError where there is no config.json, no safetensors file, or a file that the
    index promises is missing.
    """
    model_dir = Path(model_dir)
    if not (model_dir / "config.json").is_file():
        raise InputError(f"{model_dir}: not a model directory (no config.json)")
    files = sorted(path for path in model_dir.glob("*.safetensors"))
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{index}: expected an object with a weight_map") from None
        for name in sorted(names - {path.name for path in files}):
            raise InputError(f"{index}: names {name!r}, which is not in {model_dir}")
        files = [path for path in files if path.name in names]
    if not files:
        raise InputError(f"{model_dir}: not a model directory (no *.safetensors)")
    return files


def read_config(model_dir: Path) -> dict[str, Any]:
    """What config.json says. Raises InputError where it is no JSON object."""
    path = Path(model_dir) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def positions(model_dir: Path) -> int | None:
    """Tokens that a prompt and its answer may have together; None where the model doesn't say.

    Raises InputError for what is no such number.
    """
    found = read_config(model_dir).get("max_position_embeddings")
    if found is not None and (type(found) is not int or found < 1):
        raise InputError(
            f"{model_dir}/config.json: max_position_embeddings: expected a whole number from 1 up, got {found!r}"
        )
    return found


def tensor_entries(model_dir: Path) -> dict[str, TensorEntry]:
    """Every tensor of a model directory by name, in name order, with the headers checked.

    Raises InputError naming the file that is truncated, malformed, or repeats a tensor.
    """
    found: dict[str, TensorEntry] = {}
    for path in weight_files(model_dir):
        for entry in _read_header(path):
            if entry.name in found:
                raise InputError(f"{path}: tensor {entry.name!r} is also in {found[entry.name].file.name}")
            found[entry.name] = entry
    return dict(sorted(found.items()))


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Around the writing of safetensors: a full disk is the OSError that it was, not the library's own error."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _read_header(path: Path) -> list[TensorEntry]:
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: truncated or not safetensors ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
            entries = [
                (
                    TensorEntry(name, path, spec["dtype"], tuple(spec["shape"]), 8 + length + spec["data_offsets"][0]),
                    *spec["data_offsets"],
                )
                for name, spec in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{path}: malformed safetensors header") from None
    position = 0
    for entry, start, end in sorted(entries, key=lambda item: item[1]):
        if entry.dtype not in DTYPE_BYTES:
            raise InputError(f"{path}: tensor {entry.name!r} has the unsupported dtype {entry.dtype}")
        if start != position or end - start != entry.bytes:
            raise InputError(f"{path}: tensor {entry.name!r} does not lie where the header says")
        position = end
    if 8 + length + position != size:
        raise InputError(f"{path}: truncated ({size} bytes where {8 + length + position} are declared)")
    return [entry for entry, _, _ in entries]
