"""Writes a Hugging Face model directory as GGUF files, with a Modelfile for Ollama.

Names, types and block formats are those of the `gguf` package, which llama.cpp's own converter is
built on; here is only what Qwen2 and Qwen3 models need of it. Other architectures, and types below
eight bits (they want llama.cpp's `llama-quantize` on the bf16 file), are not made here. Reads and
writes one tensor at a time; runs no model and imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import InputError
from fathom.gguf.config import GgufConfig, WeightType
from fathom.gguf.template import ollama_template
from fathom.ledger import Meter
from fathom.store import read_json
from fathom.tokens import end_of_turn_id, load_tokenizer
from fathom.weights import TensorEntry, positions, read_config, tensor_entries

ARCHITECTURES = ("qwen2", "qwen3")
"""Values of `model_type` that are written, which are also llama.cpp's names for them."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words, which llama.cpp knows as `qwen2`."""

SHAPE = (
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
"""Keys of config.json that a GGUF repeats."""

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
"""A tensor of a layer: the layer's number, and its name within."""

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""What the bytes of a tensor are read as; bfloat16 is the upper half of a float32."""


def run_gguf(inputs: dict[str, Any], config: GgufConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Write `model-<type>.gguf` for every type, and `Modelfile` naming the first.

    Raises InputError for a model that this can't write faithfully.
    """
    source = Path(inputs["model"])
    sizes = {}
    for number, kind in enumerate(config.types):
        meter.check()
        target = out / f"model-{kind}.gguf"
        write_gguf(source, target, kind)
        sizes[target.name] = target.stat().st_size
        meter.progress(number + 1, len(config.types), "files")
    (out / "Modelfile").write_text(modelfile(source, config), encoding="utf-8")
    return {"bytes": sizes}


def write_gguf(source: Path, target: Path, kind: WeightType) -> None:
    """One GGUF file of a model directory. Raises InputError where the model isn't one that can be written."""
    gguf = _library()
    config = _checked(source)
    entries = tensor_entries(source)
    _check_whole(source, entries, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, config["model_type"])
    _add_shape(writer, config)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, source, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"])
    order = []
    for entry in entries.values():
        name = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{entry.file}: tensor {entry.name!r} has no place in a {config['model_type']} GGUF")
        stored = _stored_as(entry, kind)
        packed = gguf.quants.quant_shape_to_byte_shape(entry.shape, stored)
        writer.add_tensor_info(name, packed, np.dtype(np.uint8), math.prod(packed), stored)
        order.append((entry, stored))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, stored in order:
            writer.write_tensor_data(gguf.quants.quantize(read_tensor(entry), stored))
    finally:
        writer.close()


def read_tensor(entry: TensorEntry) -> np.ndarray:
    """A tensor's values as float32, mapped from the file. Raises InputError for integers and eight-bit floats."""
    if entry.dtype not in NUMPY:
        raise InputError(
            f"{entry.file}: tensor {entry.name!r} is {entry.dtype}; GGUF is written from floats of 16 bits or more"
        )
    values = np.memmap(entry.file, NUMPY[entry.dtype], "r", entry.offset, entry.shape)
    floats = (values.astype(np.uint32) << 16).view(np.float32) if entry.dtype == "BF16" else values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise InputError(f"{entry.file}: tensor {entry.name!r} holds values that are no finite numbers")
    return floats


def _check_whole(source: Path, entries: Iterable[str], layers: int) -> None:
    """Every layer that config.json counts is there, and has what the other layers have."""
    of: dict[int, set[str]] = {number: set() for number in range(layers)}
    for name in entries:
        if found := LAYER.fullmatch(name):
            of.setdefault(int(found[1]), set()).add(found[2])
    if len(of) > layers:
        raise InputError(f"{source}: weights of {len(of)} layers, and num_hidden_layers in config.json is {layers}")
    whole = set().union(*of.values())
    for number, names in of.items():
        if lacking := sorted(whole - names):
            raise InputError(f"{source}: layer {number} lacks the tensor {lacking[0]!r}")


def modelfile(source: Path, config: GgufConfig) -> str:
    """What `ollama create NAME -f Modelfile` reads: the file, the chat template in Ollama's form, sampling, context."""
    template = ollama_template(source)
    return (
        f"FROM ./model-{config.types[0]}.gguf\n"
        f'TEMPLATE """{template.text}"""\n'
        + "".join(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}\n" for stop in template.stops)
        + f"PARAMETER temperature {config.temperature:g}\nPARAMETER top_p {config.top_p:g}\n"
        + f"PARAMETER num_ctx {min(config.context, positions(source) or config.context)}\n"
    )


# ------------------------------------------------------------------------------ what a GGUF says of its model


def _checked(source: Path) -> dict[str, Any]:
    """config.json, where every value that would change the arithmetic is one that the file can hold."""
    config = read_config(source)
    where = source / "config.json"
    if config.get("model_type") not in ARCHITECTURES:
        raise InputError(
            f"{where}: model_type {config.get('model_type')!r}: GGUF is written for {' and '.join(ARCHITECTURES)}; "
            "llama.cpp's convert_hf_to_gguf.py knows the others"
        )
    if missing := [key for key in SHAPE if config.get(key) is None]:
        raise InputError(f"{where}: no {', '.join(missing)}; a GGUF needs them")
    for key in SHAPE:
        if type(config[key]) not in (int, float) or config[key] <= 0:
            raise InputError(f"{where}: {key}: expected a number above 0, got {config[key]!r}")
    if _rope(config).get("rope_type", "default") != "default":
        raise InputError(f"{where}: rope_type {_rope(config)['rope_type']!r}: only default positions are written")
    if config.get("use_sliding_window"):
        raise InputError(f"{where}: use_sliding_window: only full attention is written")
    return config


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary positions, which older files spread over two keys."""
    older = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    return config.get("rope_parameters") or older


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    if size := config.get("head_dim"):
        writer.add_key_length(size)
        writer.add_value_length(size)


def _add_tokenizer(writer: Any, source: Path, vocabulary: int) -> None:
    """Tokens, their types, merges, special ids and the chat template; ids without a token are named as padding."""
    gguf = _library()
    path = source / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{source}: no tokenizer.json, from which a GGUF takes its tokens")
    turn = end_of_turn_id(load_tokenizer(source))  # which refuses a damaged file
    tokenizer = read_json(path)
    model = tokenizer["model"]
    cut = tokenizer["pre_tokenizer"] or {}
    patterns = [part.get("pattern", {}).get("Regex") for part in cut.get("pretokenizers", [cut])]
    if model.get("type") != "BPE" or QWEN_SPLIT not in patterns:
        raise InputError(f"{path}: not Qwen2's tokenizer; llama.cpp would cut text in another way")
    ids = [*model["vocab"].values(), *(added["id"] for added in tokenizer.get("added_tokens", ()))]
    if (over := max(ids) + 1 - vocabulary) > 0:
        raise InputError(f"{path}: {over} tokens more than vocab_size in config.json")
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [gguf.TokenType.UNUSED] * vocabulary
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for added in tokenizer.get("added_tokens", ()):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(source, load_merges=True)
    special.add_to_gguf(writer, quiet=True)
    if turn != special.special_token_ids.get("eos"):
        writer.add_eot_token_id(turn)


def _stored_as(entry: TensorEntry, kind: WeightType) -> Any:
    """Vectors stay float32; a matrix whose rows are no whole blocks of its type falls back to float16."""
    gguf = _library()
    if len(entry.shape) < 2:
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if entry.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise InputError(
            "gguf: the gguf package is not installed; it comes with `pip install 'fathom[gguf]'`"
        ) from None
    return gguf
