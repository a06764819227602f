"""verl and LLaMA-Factory load an export with their own loaders, in an environment of theirs (`make proof`)."""

from __future__ import annotations

import sys

import pytest
from export_rows import PROBLEMS, SYSTEM, write_selection
from models import write_model
from peer_environment import build, run
from test_export import CHATML, export

from fathom.curate.export import plain_text
from fathom.prompts.ask import ask
from fathom.records import Example, read_jsonl

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="verl 0.9 needs Python below 3.13"),
]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    return build(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    rows = write_selection(folder / "rows", system=SYSTEM)
    out, _ = export(folder, rows, formats=["messages", "sharegpt", "verl"], name="fathom-rows")
    write_model(folder / "model", template=CHATML)
    return out, folder / "model", list(read_jsonl(rows / "examples.jsonl", Example))


def test_verl_reads_rewards_and_trains_on_the_rows(peers, exported):
    out, model, examples = exported
    told = run(peers, "peer_verl.py", out, model)
    assert told["ids"] == [p.id for p in PROBLEMS] and told["index"] == [0, 1, 2, 3]
    assert told["prompts"] == [[{"role": m.role, "content": m.content} for m in ask(p)] for p in PROBLEMS]
    assert told["right"] == [1.0] * 4 and told["wrong"] == [0.0] * 4
    assert told["trained"] == [plain_text(e.messages[-1]) + "<|im_end|>\n" for e in examples]


def test_llamafactory_reads_the_rows_and_trains_on_the_answers(peers, exported):
    out, model, examples = exported
    told = run(peers, "peer_llamafactory.py", out, model, "fathom-rows")
    empty = "<think>\n\n</think>\n\n"  # its template for reasoning models puts this before an answer without thinking
    answers = [e.messages[-1] for e in examples]
    wanted = [(empty if a.reasoning is None else "") + plain_text(a) + "<|im_end|>\n" for a in answers]
    assert told["trained"] == wanted
    for example, text in zip(examples, told["texts"], strict=True):
        system, user, _ = example.messages
        turns = f"<|im_start|>system\n{system.content}<|im_end|>\n<|im_start|>user\n{user.content}<|im_end|>\n"
        assert text.startswith(turns + "<|im_start|>assistant\n")
