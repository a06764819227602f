"""A peer's trainer on the same rows gives the same losses: TRL's SFTTrainer, step by step."""

import json

import pytest
import torch
from sft_child import write_work
from transformers import AutoModelForCausalLM

from fathom.ledger import Meter
from fathom.records import Example, read_jsonl
from fathom.tokens import encode_example, load_tokenizer
from fathom.train.layout import epoch_order
from fathom.train.sft import SftConfig, run_sft

trl = pytest.importorskip("trl", reason="trl is not installed (it comes with the dev extra)")
datasets = pytest.importorskip("datasets")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_losses_and_weights_equal_trls(tmp_path):
    work = tmp_path / "work"
    write_work(work, rows=32)
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    model.save_pretrained(work / "model")  # float32 on disk, so that weights can be compared closely
    examples = list(read_jsonl(work / "examples.jsonl", Example))
    order = epoch_order([e.id for e in examples], 0, 0, [e.difficulty for e in examples])
    tokenizer = load_tokenizer(work / "model")
    rows = [encode_example(tokenizer, examples[i]) for i in order]

    config = SftConfig(
        model="base", examples="rows", batch_size=4, learning_rate=1e-3, warmup=0, schedule="constant", pack_tokens=150
    )
    (work / "out").mkdir()
    run_sft(
        {"model": work / "model", "examples": work / "examples.jsonl"},
        config,
        work / "out",
        Meter.null(work / "scratch"),
    )
    ours = [json.loads(line) for line in (work / "out/train_log.jsonl").read_text().splitlines()]

    peer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(
            [{"input_ids": row.ids, "completion_mask": [int(weight) for weight in row.weights]} for row in rows]
        ),
        processing_class=tokenizer,
    )
    peer.train()
    theirs = [entry for entry in peer.state.log_history if "loss" in entry]

    assert len(ours) == len(theirs) == 8
    assert ours[0]["loss"] > ours[-1]["loss"] + 0.05
    for our, their in zip(ours, theirs, strict=True):
        assert our["loss"] == pytest.approx(float(their["loss"]), rel=2e-4)
        assert our["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=1e-3)
    trained = AutoModelForCausalLM.from_pretrained(work / "out")
    for name, theirs_p in peer.model.named_parameters():
        torch.testing.assert_close(trained.state_dict()[name], theirs_p.detach(), rtol=1e-3, atol=1e-4, msg=name)
