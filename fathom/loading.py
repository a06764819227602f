"""A Hugging Face directory as a model: all of its weights come from its files, or it is refused in one line.

The one place where weights become a model, for what draws chains and for what trains. Who asks says how attention is
computed, and judges whether it can work with the model; nothing is done with it here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from fathom.errors import InputError, first_line
from fathom.weights import tensor_entries

disable_progress_bar()  # of the weights, which are read in a moment
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "LOAD REPORT" not in record.getMessage())
# a table of many lines, of which `_check_complete` says in one what matters

LOGIT_ENTRIES = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
"""Entries of configurations that change a model's logits or its attention's scores."""


def load_causal_model(
    model_dir: Path, attention: str, dtype: torch.dtype, quantized: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The causal language model of a local directory; no network, no code but transformers' own.

    attention: name of an implementation that transformers knows. quantized: its arguments to quantize weights as they load.
    Raises InputError for a directory that is not a model, truncated weights, and weights that are not those of its config.json.
    """
    tensor_entries(model_dir)  # names the damaged file, where transformers only says that there is one
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=quantized is None,  # which `_check_complete` names
            **(quantized or {}),
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the library's own, of any kind, for files that are not what they should be
        raise InputError(f"{model_dir}: can't be loaded as a causal language model ({first_line(error)})") from error
    _check_complete(model_dir, told)
    return model


def changed_logits(config: PretrainedConfig) -> list[str]:
    """The entries of a configuration with which logits or attention's scores are more than a matrix product."""
    return [name for name in LOGIT_ENTRIES if getattr(config, name, None) not in (None, 1)]


def _check_complete(model_dir: Path, told: Mapping[str, Any]) -> None:
    """Raises InputError for weights that the model needs and its files don't have in its shape.

    transformers fills them with random numbers and goes on. told: its own account of the loading.
    """
    if mismatched := sorted(told["mismatched_keys"]):
        name, stored, needed = mismatched[0]
        shapes = f"shape {list(stored)} in the files and {list(needed)} by config.json"
        raise InputError(f"{model_dir}: tensor {name!r} has {shapes}{_more(mismatched)}")
    if missing := sorted(told["missing_keys"]):
        raise InputError(
            f"{model_dir}: tensor {missing[0]!r}, which its config.json asks for, is in no file{_more(missing)}"
        )


def _more(found: Sequence[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
