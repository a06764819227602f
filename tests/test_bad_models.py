"""Model directories that are not what they should be: one line that names the file or the tensor, and no chain drawn."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PhiConfig, PhiForCausalLM

from fathom.engines import TransformersConfig
from fathom.engines.hf import TransformersEngine
from fathom.errors import InputError
from fathom.gguf.export import write_gguf
from fathom.records import Message
from fathom.serve.solving import default_max_tokens
from fathom.tokens import EncodedExample, load_tokenizer, prompt_text, stop_ids
from fathom.train.batch import pack
from fathom.train.model import load_model, pack_logprobs
from fathom.weights import positions

TINY = Path(__file__).parent.parent / "fathom" / "data" / "fathom-tiny-base"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def configured(model: Path, **entries: object) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return model


def weighted(model: Path, change) -> Path:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def opened(model: Path) -> None:
    TransformersEngine(model, TransformersConfig()).close()


OPENS = {
    "drawn with": opened,
    "trained": load_model,
    "written as GGUF": lambda model: write_gguf(model, model / "m.gguf", "bf16"),
}


@pytest.mark.parametrize("use", OPENS)
def test_a_missing_tensor_is_never_filled_with_random_numbers(model, use):
    weighted(model, lambda tensors: tensors.pop(GATE))
    with pytest.raises(InputError, match=r"mlp\.gate_proj\.weight"):
        OPENS[use](model)


@pytest.mark.parametrize("use", ["drawn with", "trained"])
def test_a_tensor_of_another_shape_is_named(model, use):
    def narrow(tensors):
        tensors[GATE] = tensors[GATE][:, :96].contiguous()

    weighted(model, narrow)
    with pytest.raises(
        InputError, match=r"gate_proj.weight' has shape \[576, 96\] in the files and \[576, 192\] by config.json"
    ):
        OPENS[use](model)


@pytest.mark.parametrize("use", ["drawn with", "written as GGUF"])
def test_weights_that_are_no_numbers_are_named(model, use):
    weighted(model, lambda tensors: tensors[GATE][0].fill_(torch.nan))
    with pytest.raises(InputError, match=r"gate_proj.weight' holds values that are no finite numbers"):
        OPENS[use](model)


@pytest.mark.parametrize("use", ["drawn with", "trained"])
def test_a_tensor_that_the_model_has_no_place_for_makes_no_table(model, monkeypatch, caplog, use):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    weighted(model, lambda tensors: tensors.update({"model.odd.weight": torch.zeros(2, 2)}))
    OPENS[use](model)
    assert caplog.text == ""


def test_a_tensor_that_gguf_has_no_place_for_is_named(model):
    weighted(model, lambda tensors: tensors.update({"model.odd.weight": torch.zeros(2, 2)}))
    with pytest.raises(InputError, match=r"tensor 'model\.odd\.weight' has no place in a qwen2 GGUF"):
        OPENS["written as GGUF"](model)


def test_gguf_has_as_many_layers_as_the_configuration_counts(model):
    configured(model, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"weights of 5 layers, and num_hidden_layers in config.json is 3"):
        OPENS["written as GGUF"](model)
    configured(model, num_hidden_layers="five")
    with pytest.raises(InputError, match="num_hidden_layers: expected a number above 0, got 'five'"):
        OPENS["written as GGUF"](model)


def test_a_configuration_that_cannot_be_trained_is_one_line(model):
    configured(model, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"can't be loaded .*`num_hidden_layers` .1. must be equal"):
        load_model(model)


@pytest.mark.parametrize("entry", ["final_logit_softcapping", "attn_logit_softcapping", "logits_scaling"])
def test_logits_that_would_be_computed_otherwise_are_refused(model, entry):
    load_model(configured(model, **{entry: None}))
    for use in (opened, load_model):
        with pytest.raises(InputError, match=f"plain logits only, not {entry}"):
            use(configured(model, **{entry: 30.0}))


def test_a_head_with_a_bias_is_not_trained(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    PhiForCausalLM(PhiConfig(vocab_size=64, **small)).save_pretrained(tmp_path / "phi")
    with pytest.raises(InputError, match="plain logits only, not a head with a bias"):
        load_model(tmp_path / "phi")


def test_training_refuses_rows_beyond_a_sliding_window(model):
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    sliding = {"sliding_window": 4, "layer_types": ["sliding_attention"] * layers}
    trained = load_model(configured(model, use_sliding_window=True, **sliding))
    pack_logprobs(trained, pack([EncodedExample("a", [1, 2, 3, 4], [0, 1, 1, 1], 1)]))
    with pytest.raises(InputError, match="a row of 5 tokens exceeds the model's sliding window of 4"):
        pack_logprobs(trained, pack([EncodedExample("a", [1, 2, 3, 4, 5], [0, 1, 1, 1, 1], 1)]))


def test_positions(model):
    assert positions(model) == 2048 and default_max_tokens(model) == 1024
    configured(model, max_position_embeddings=None)
    assert positions(model) is None and default_max_tokens(model) == 16384
    for wrong in ("many", 0, -5, 2048.5, True):
        configured(model, max_position_embeddings=wrong)
        with pytest.raises(
            InputError, match=r"config.json: max_position_embeddings: expected a whole number from 1 up"
        ):
            positions(model)
    (model / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: expected a JSON object, got list"):
        positions(model)


TOKENIZERS = {
    "no vocabulary": ("tokenizer.json", None, "the tokenizer knows no text"),
    "a list": ("tokenizer.json", "[]", "the tokenizer can't be read"),
    "a configuration that is a list": ("tokenizer_config.json", "[]", "the tokenizer can't be read"),
}


@pytest.mark.parametrize(("name", "content", "told"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_reads_nothing_is_refused(model, name, content, told):
    (model / name).unlink()
    if content is not None:
        (model / name).write_text(content)
    with pytest.raises(InputError, match=told):
        load_tokenizer(model)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for m in messages %}{{ m.content", "unexpected end of template"),
        ("{{ nobody.knows.it }}", "'nobody' is undefined"),
    ],
)
def test_a_template_that_fails_is_one_line_that_names_the_model(model, template, told):
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=rf"{model}: the chat template can't render this conversation \({told}"):
        prompt_text(load_tokenizer(model), [Message("user", "?")])


def test_end_tokens_are_numbers(model):
    (model / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id: expected token ids"):
        stop_ids(load_tokenizer(model), model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"engine.device: cuda: there is no GPU"):
        TransformersEngine(TINY, TransformersConfig(device="cuda"))
