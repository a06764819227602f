"""Export: the rows are what TRL and `datasets` load; what a format has no place for is set aside; same bytes again."""

import json
import re

import pytest
import torch
from export_rows import CALLED, PROBLEMS, SYSTEM, TEXTS, write_selection
from models import write_model

from fathom.config import validate
from fathom.curate.export import NotExportable, ground_truth
from fathom.curate.export_config import ExportConfig
from fathom.curate.ops.export import run_export
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, Problem, read_jsonl, write_jsonl
from fathom.store import hash_path
from fathom.tokens import encode_example, load_tokenizer

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl", reason="trl is not installed (it comes with the dev extra)")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML that leaves the reasoning of a turn where it is."""


def export(folder, rows, out="out", **config):
    config = validate(ExportConfig, {"rows": "rows", **config})
    (folder / out).mkdir()
    return folder / out, run_export({"rows": rows}, config, folder / out, Meter.null(folder / "scratch"))


def load(path, tmp_path):
    return list(datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"])


def test_every_format_holds_every_row(tmp_path):
    rows = write_selection(tmp_path / "rows")
    out, metrics = export(tmp_path, rows, formats=["messages", "sharegpt", "verl", "trl"])
    assert metrics == {"rows": {"messages": 4, "sharegpt": 4, "verl": 4, "trl": 4}, "set_aside": 0}
    messages = load(out / "messages.parquet", tmp_path)
    assert messages[0]["messages"][-1] == {"role": "assistant", "content": TEXTS["m/1"]}
    assert messages[1]["messages"][-1]["content"] == "<think>" + TEXTS["m/2"]
    assert (messages[0]["id"], messages[0]["licence"], messages[0]["solve_rate"]) == ("m/1#0", "Apache-2.0", 0.5)
    assert (messages[2]["licence"], messages[2]["difficulty"], messages[2]["solve_rate"]) == (None, None, None)
    lineage = [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()]
    assert [row["id"] for row in lineage] == [row["id"] for row in messages]
    assert lineage[0]["solved"] == {"correct": 4, "chains": 8} and lineage[0]["usd"] == 0.001
    assert "licence" not in lineage[2] and lineage[2]["verdict"]["answer"] == "B"
    verl = load(out / "verl.parquet", tmp_path)
    assert [row["reward_model"]["ground_truth"] for row in verl[:3]] == ["\\frac{1}{2}", "12", "B"]
    assert json.loads(verl[3]["reward_model"]["ground_truth"]) == {
        "inputs": ["1 2\n", "4 5\n"],
        "outputs": ["3\n", "9\n"],
    }
    assert [row["extra_info"]["index"] for row in verl] == [0, 1, 2, 3]


def test_an_export_is_the_same_bytes_again(tmp_path):
    rows = write_selection(tmp_path / "rows")
    first, _ = export(tmp_path, rows, "a", formats=["messages", "sharegpt", "verl", "trl"])
    again, _ = export(tmp_path, rows, "b", formats=["messages", "sharegpt", "verl", "trl"])
    assert hash_path(first) == hash_path(again)


def test_more_rows_than_are_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("fathom.curate.ops.export.ROW_GROUP", 3)
    rows = write_selection(tmp_path / "rows")
    out, _ = export(tmp_path, rows, formats=["messages"])
    assert [row["problem_id"] for row in load(out / "messages.parquet", tmp_path)] == [p.id for p in PROBLEMS]


def test_sharegpt_is_one_json_array_with_its_entry(tmp_path):
    rows = write_selection(tmp_path / "rows", system=SYSTEM)
    out, _ = export(tmp_path, rows, formats=["sharegpt"], name="mine")
    turns = json.loads((out / "sharegpt.json").read_text())[0]["conversations"]
    assert [turn["from"] for turn in turns] == ["system", "human", "gpt"] and turns[2]["value"] == TEXTS["m/1"]
    entry = json.loads((out / "dataset_info.json").read_text())["mine"]
    assert entry["file_name"] == "sharegpt.json" and entry["columns"] == {"messages": "conversations"}
    assert entry["tags"]["assistant_tag"] == "gpt" and entry["tags"]["system_tag"] == "system"


# ------------------------------------------------------------------------------ TRL


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_trls_sft_trainer_reads_the_tokens_that_fathom_trains_on(tmp_path):
    rows = write_selection(tmp_path / "rows", system=SYSTEM)
    out, _ = export(tmp_path, rows, formats=["messages"])
    model = write_model(tmp_path / "model", template=CHATML)
    tokenizer = load_tokenizer(model)
    peer = trl.SFTTrainer(
        str(model),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, max_length=None
        ),
        train_dataset=datasets.Dataset.from_list(load(out / "messages.parquet", tmp_path)),
        processing_class=tokenizer,
    )
    ours = [encode_example(tokenizer, e).ids for e in read_jsonl(rows / "examples.jsonl", Example)]
    newline = tokenizer("\n")["input_ids"]  # the template's, after the end of the turn, where a row of ours ends
    assert [row["input_ids"] for row in peer.train_dataset] == [ids + newline for ids in ours]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_trls_grpo_trainer_hands_the_answers_to_its_rewards(tmp_path):
    rows = write_selection(tmp_path / "rows")
    out, _ = export(tmp_path, rows, formats=["trl"])
    model = write_model(tmp_path / "model", template=CHATML)
    seen = {}

    def reward(prompts, completions, answer, solution, **columns):
        seen.update(zip((p[-1]["content"] for p in prompts), zip(answer, solution, strict=True), strict=True))
        return [0.0] * len(prompts)

    torch.manual_seed(0)
    peer = trl.GRPOTrainer(
        str(model),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, max_completion_length=4,
            num_generations=2, per_device_train_batch_size=8, max_steps=1, save_strategy="no", logging_steps=1,
        ),
        train_dataset=datasets.Dataset.from_list(load(out / "trl.parquet", tmp_path)),
        processing_class=load_tokenizer(model),
    )  # fmt: skip
    peer.train()
    by_question = {question.split("\n")[0]: answer for question, answer in seen.items()}
    assert by_question[PROBLEMS[0].question] == ("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}")
    assert by_question[PROBLEMS[3].question][1] is None


@pytest.mark.parametrize(("text", "rewards"), [
    ("So \\boxed{\\frac{2}{4}}", [1.0, 0.0, 0.0]), ("So \\boxed{12}", [0.0, 1.0, 0.0]), ("\\boxed{B}", [0.0, 0.0, 1.0]),
])  # fmt: skip
def test_trls_accuracy_reward_reads_the_solutions(tmp_path, text, rewards):
    rows = write_selection(tmp_path / "rows")
    out, _ = export(tmp_path, rows, formats=["trl"])
    from trl.rewards import accuracy_reward

    solutions = [row["solution"] for row in load(out / "trl.parquet", tmp_path)][:3]
    answers = [[{"role": "assistant", "content": text}]] * 3
    assert accuracy_reward(answers, solutions) == rewards


# ------------------------------------------------------------------------------ what has no place


@pytest.mark.parametrize(("problem", "told"), [
    (Problem("x", "Prove it.", None), "no gold answer"),
    (Problem("x", "?", None, "code", tests=[{"kind": "asserts", "code": "assert f(1) == 2"}]), "tests of kind asserts"),
    (Problem("x", "?", None, "code", tests=CALLED), "the function under test is not named"),
])  # fmt: skip
def test_what_has_no_ground_truth(problem, told):
    with pytest.raises(NotExportable, match=told):
        ground_truth(problem)


def test_the_truth_of_a_choice_is_its_letter():
    options = ["10 cm", "12 cm", "14 cm"]
    assert [ground_truth(Problem("x", "?", gold, "choice", options=options)) for gold in ("12 cm", "(b)")] == ["B", "B"]
    with pytest.raises(NotExportable, match="no gold answer"):
        ground_truth(Problem("x", "?", "9 cm", "choice", options=options))


def test_called_functions_are_told_as_apps_tells_them():
    problem = Problem("x", "?", None, "code", tests=CALLED, meta={"fn_name": "f"})
    assert json.loads(ground_truth(problem)) == {"inputs": ['[3, 1]\n"a\\nb"'], "outputs": ["[1, 3]"], "fn_name": "f"}


def test_problems_without_an_answer_are_set_aside_by_name(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    write_jsonl(rows / "problems.jsonl", [Problem("open", "Prove it.", None), *PROBLEMS])
    out, metrics = export(tmp_path, rows, formats=["verl", "trl"])
    assert metrics == {"rows": {"verl": 4, "trl": 4}, "set_aside": 2}
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    assert removed == [{"id": "open", "reason": f"{form}: no gold answer"} for form in ("verl", "trl")]
    assert [row["extra_info"]["index"] for row in load(out / "verl.parquet", tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("problems", "formats", "told"), [
    (PROBLEMS, ["sharegpt"], "export: the format sharegpt needs examples.jsonl, and rows has none"),
    ([Problem("open", "?", None)], ["trl"], "export: no row of rows is left for the format trl: open: trl: no gold answer"),
])  # fmt: skip
def test_rows_that_a_format_cannot_use(tmp_path, problems, formats, told):
    rows = tmp_path / "rows"
    rows.mkdir()
    write_jsonl(rows / "problems.jsonl", problems)
    with pytest.raises(InputError, match=re.escape(told)):
        export(tmp_path, rows, formats=formats)
