"""LoRA: only the adapters move, and what is written is the base plus their product, a plain model."""

import shutil

import pytest
import torch
from sft_child import write_work
from transformers import AutoModelForCausalLM

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.train.adapter import load_adapted, merged
from fathom.train.config import AdapterConfig, SftConfig
from fathom.train.model import load_model
from fathom.train.sft import run_sft

SMALL = AdapterConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))

pytest.importorskip("peft", reason="peft is not installed")


@pytest.fixture
def work(tmp_path):
    write_work(work := tmp_path / "work")
    return work


def train(work, **settings):
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    config = SftConfig(
        model="base", examples="rows", order="shuffled", batch_size=6, epochs=2, learning_rate=1e-2, **settings
    )
    inputs = {"model": work / "model", "examples": work / "examples.jsonl"}
    return run_sft(inputs, config, out, Meter.null(work / "scratch", 7)), out


def test_it_learns_and_leaves_every_other_weight_as_it_was(work):
    metrics, out = train(work, adapter=SMALL)
    assert metrics["loss_last"] < metrics["loss_first"]
    before = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("q_proj.weight" in name or "down_proj.weight" in name for name in moved)


@pytest.mark.parametrize(("target", "kind"), [("embed_tokens", "embedding"), ("lm_head", "head")])
def test_what_could_not_be_written_back_is_refused(work, target, kind):
    with pytest.raises(
        InputError, match=rf"adapter.targets: (model\.)?{target} is the {kind}; adapters train layers only"
    ):
        train(work, adapter=AdapterConfig(rank=4, alpha=8, targets=("q_proj", target)))


def test_the_written_model_computes_what_the_adapted_one_did(work):
    model = load_adapted(work / "model", SMALL, torch.device("cpu"), torch.float32, seed=1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) and len(trained) == 2 * 2 * 2
    with torch.no_grad():
        for number, parameter in enumerate(trained.values()):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    ids = torch.arange(1, 20)[None]
    plain = merged(work / "model", SMALL, trained)
    model.config._attn_implementation = plain.config._attn_implementation = "sdpa"
    model.set_attn_implementation("sdpa")
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
        load = load_model(work / "model")
        load.set_attn_implementation("sdpa")
        assert (plain(ids).logits - load(ids).logits).abs().max() > 1e-3


def test_it_resumes_to_the_same_bytes(work, monkeypatch):
    _, out = train(work, adapter=SMALL)
    whole = (out / "model.safetensors").read_bytes()
    shutil.rmtree(work / "scratch")
    import fathom.train.loop as loop

    real, calls = loop.optimizer_step, []

    def stop_after_three(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "optimizer_step", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        train(work, adapter=SMALL, checkpoint_every=1)
    monkeypatch.setattr(loop, "optimizer_step", real)
    _, out = train(work, adapter=SMALL, checkpoint_every=1)
    assert (out / "model.safetensors").read_bytes() == whole


def test_unknown_targets_are_one_clear_line(work):
    with pytest.raises(InputError, match=r"adapter.targets: .*nowhere"):
        train(work, adapter=AdapterConfig(targets=("nowhere",)))


def test_quantized_weights_need_bitsandbytes(work, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="bitsandbytes is not installed"):
        train(work, adapter=AdapterConfig(quantize=True))


def test_adapters_go_with_the_plain_step_only():
    with pytest.raises(ValueError, match="adapter goes with step plain"):
        SftConfig(model="base", examples="rows", batch_size=1, adapter=SMALL, float8=True)
