"""The SFT stage: what it writes, what it sets aside, and which inputs it refuses in one line."""

import errno
import json

import pytest
import torch
from models import write_model
from pydantic import ValidationError
from safetensors import SafetensorError
from sft_child import write_work
from transformers import AutoModelForCausalLM, AutoTokenizer

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.train.sft import SftConfig, run_sft
from fathom.weights import os_errors, tensor_entries

CONFIG = {"model": "base", "examples": "rows", "batch_size": 8, "learning_rate": 3e-3}


def sft(work, meter=None, **settings):
    out = work / "out"
    out.mkdir(exist_ok=True)
    inputs = {"model": work / "model", "examples": work / "examples.jsonl"}
    return run_sft(inputs, SftConfig(**{**CONFIG, **settings}), out, meter or Meter.null(work / "scratch"))


@pytest.fixture
def work(tmp_path):
    write_work(tmp_path / "work")
    return tmp_path / "work"


def edit_rows(work, change) -> None:
    rows = [json.loads(line) for line in (work / "examples.jsonl").read_text().splitlines()]
    rows = change(rows) or rows
    (work / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_it_learns_and_writes_a_plain_hugging_face_directory(work):
    metrics = sft(work, epochs=12)
    assert metrics["loss_last"] < 0.75 * metrics["loss_first"]
    log = [json.loads(line) for line in (work / "out/train_log.jsonl").read_text().splitlines()]
    assert list(log[0]) == ["step", "epoch", "loss", "lr", "grad_norm", "tokens"]
    assert metrics["trained_tokens"] == sum(row["tokens"] for row in log)

    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (work / "out" / name).read_bytes() == (work / "model" / name).read_bytes(), name
    before, after = tensor_entries(work / "model"), tensor_entries(work / "out")
    assert [(e.name, e.dtype, e.shape) for e in after.values()] == [(e.name, e.dtype, e.shape) for e in before.values()]
    model = AutoModelForCausalLM.from_pretrained(work / "out")
    assert model.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(work / "model")
    moved = [name for name, p in base.named_parameters() if not torch.equal(p, model.state_dict()[name])]
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"} <= set(moved)
    assert (
        AutoTokenizer.from_pretrained(work / "out").chat_template
        == AutoTokenizer.from_pretrained(work / "model").chat_template
    )


def test_bfloat16_compute_follows_float32(work):
    exact = sft(work, epochs=4)
    rounded = sft(work, Meter.null(work / "scratch2"), epochs=4, precision="bfloat16")
    assert rounded["loss_last"] == pytest.approx(exact["loss_last"], abs=0.02)
    assert rounded["loss_last"] != exact["loss_last"]


def test_the_fused_step_learns_the_same(work):
    plain = sft(work, epochs=3)
    log = (work / "out/train_log.jsonl").read_text()
    fused = sft(work, Meter.null(work / "scratch2"), epochs=3, step="fused", checkpoint_every=2)
    for key in ("loss_first", "loss_last"):
        assert fused[key] == pytest.approx(plain[key], rel=1e-4)
    for ours, theirs in zip((work / "out/train_log.jsonl").read_text().splitlines(), log.splitlines(), strict=True):
        assert json.loads(ours)["grad_norm"] == pytest.approx(json.loads(theirs)["grad_norm"], rel=1e-3)
    again = sft(work, Meter.null(work / "scratch2"), epochs=3, step="fused", checkpoint_every=2)
    assert again["loss_last"] == fused["loss_last"]


def test_float8_products_learn_nearly_the_same(work):
    exact = sft(work, epochs=4, step="fused")
    eight = sft(work, Meter.null(work / "scratch2"), epochs=4, step="fused", float8=True)
    assert eight["loss_last"] == pytest.approx(exact["loss_last"], abs=0.05)
    assert eight["loss_last"] != exact["loss_last"]


def test_pack_size_changes_no_step(work):
    wide = sft(work, epochs=2)
    narrow = sft(work, Meter.null(work / "scratch2"), epochs=2, pack_tokens=100)
    for key in ("loss_first", "loss_last"):
        assert narrow[key] == pytest.approx(wide[key], rel=1e-5)
    assert narrow["trained_tokens"] == wide["trained_tokens"]


def test_rows_that_are_too_long_are_set_aside_and_counted(work):
    edit_rows(work, lambda rows: rows[3]["messages"][1].update(reasoning="long " * 200))
    metrics = sft(work, max_length=300)
    assert metrics["funnel"] == [["examples", 24], ["within max_length", 23]]
    (removed,) = [json.loads(line) for line in (work / "out/removed.jsonl").read_text().splitlines()]
    assert removed["id"] == "e3" and removed["tokens"] > 1000 and removed["reason"] == "longer than max_length 300"


def repeat_id(rows):
    rows[5]["id"] = rows[2]["id"]


def drop_difficulty(rows):
    del rows[4]["difficulty"]


def empty_answer(rows):
    rows[6]["messages"][1].update(reasoning="", content=" ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], r"examples\.jsonl: no examples"),
        (repeat_id, r"examples\.jsonl: example id 'e2' occurs 2 times"),
        (drop_difficulty, r"examples\.jsonl: example 'e4' has no difficulty; set order: shuffled"),
        (empty_answer, r"examples\.jsonl: example 'e6': .*every token would be masked"),
    ],
)
def test_rows_that_are_refused(work, change, message):
    rows = [json.loads(line) for line in (work / "examples.jsonl").read_text().splitlines()]
    changed = change(rows)
    edit_rows(work, lambda _: rows if changed is None else changed)
    if changed == []:
        (work / "examples.jsonl").write_text("")
    with pytest.raises(InputError, match=message) as caught:
        sft(work)
    assert "\n" not in str(caught.value)


def test_no_row_fits(work):
    with pytest.raises(InputError, match="none of 24 examples fits max_length 5"):
        sft(work, max_length=5)


def truncate(work):
    path = work / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scramble(work):
    (work / "model/model.safetensors").write_bytes(b"\xff" * 500)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors: truncated"),
        (scramble, r"model\.safetensors: truncated or not safetensors"),
        (lambda work: (work / "model/config.json").unlink(), r"model: not a model directory \(no config\.json\)"),
        (
            lambda work: (work / "model/model.safetensors").unlink(),
            r"model: not a model directory \(no \*\.safetensors\)",
        ),
        (
            lambda work: (work / "model/config.json").write_text('{"model_type": "nonsense"}'),
            r"model: can't be loaded as a causal language model",
        ),
    ],
)
def test_models_that_are_refused(work, damage, message):
    damage(work)
    with pytest.raises(InputError, match=message) as caught:
        sft(work)
    assert "\n" not in str(caught.value)
    assert list((work / "out").iterdir()) == []


def test_missing_shard_is_named(tmp_path):
    model = write_model(tmp_path / "model", max_shard_size="40KB")
    first, *others = sorted(model.glob("*.safetensors"))
    assert others
    first.unlink()
    with pytest.raises(InputError, match=f"index.json: names '{first.name}'"):
        tensor_entries(model)


def test_a_full_disk_under_safetensors_is_an_os_error(tmp_path):
    with pytest.raises(OSError) as caught, os_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 8, "batch_tokens": 100}])
def test_exactly_one_batch_size(sizes):
    with pytest.raises(ValidationError, match="either batch_size or batch_tokens"):
        SftConfig(model="base", examples="rows", **sizes)
