"""Publishing: what the card says, what the hub is given, what the scan finds, and that nothing goes without being told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, Hub, hub
from huggingface_hub import parse_eval_result_entries
from models import write_model

from fathom import commands, store
from fathom.errors import InputError, WorkError
from fathom.publish import publish
from fathom.publish.scan import scan
from fathom.publish.tree import print_tree, size
from fathom.report import eval_results, licences, model_card
from fathom.report.read import Run, Stage, read_run

RECIPE = """
recipe: shared
models: {{base: "{folder}/base"}}
final: merged
stages:
  problems: {{op: sources, sources: [{{name: local, path: "{folder}/problems.jsonl", licence: CC BY-SA 4.0}}]}}
  clean: {{op: decontaminate, problems: problems, benchmarks: [{{name: sums, path: "{folder}/sums.jsonl"}}]}}
  merged: {{op: given, path: "{folder}/base"}}
"""


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_model(folder / "base")
    (folder / "base/README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    lines(folder / "problems.jsonl", [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)])
    lines(folder / "sums.jsonl", [{"id": str(i), "problem": f"Double {i}.", "answer": str(2 * i)} for i in range(4)])
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    commands.run(folder / "recipe.yaml", folder / "run", [], None, None)
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


# ------------------------------------------------------------------------------ the way to the hub


def test_without_a_repository_the_tree_is_shown_and_nothing_leaves(finished: Path, server: Hub, capsys) -> None:
    commands.publish(finished, None, [])
    shown = capsys.readouterr().out
    assert "README.md" in shown and "model.safetensors  144 kB" in shown
    assert shown.endswith("nothing was sent; --repo org/name and a token in HF_TOKEN send it\n")
    assert server.calls == []


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client warns of itself
def test_a_push_makes_one_commit_of_exactly_the_tree(finished: Path, server: Hub, capsys) -> None:
    commands.publish(finished, "me/tiny", ["message=First"], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["commit"].startswith(f"{server.url}/me/tiny/commit/") and told["findings"] == []
    model = finished / "model"
    on_disk = {p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert server.files == on_disk and sorted(told["files"]) == sorted(on_disk)
    assert server.repos["me/tiny"]["visibility"] == "private"
    assert server.commits == ["First"]


@pytest.mark.parametrize(
    ("repo", "token", "error", "told"),
    [
        ("me/tiny", "", InputError, "no token in HF_TOKEN; nothing was sent"),
        ("tiny", TOKEN, InputError, "expected org/name"),
        ("me/ti ny", TOKEN, InputError, "--repo me/ti ny: "),
        ("me/tiny", "hf_wrong", WorkError, "publishing me/tiny failed"),
    ],
)
def test_a_push_that_may_not_be_is_one_line(
    finished: Path, server: Hub, repo: str, token: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error) as raised:
        publish(finished, repo, [], {"HF_TOKEN": token})
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert server.files == {}


def test_a_finding_stops_the_push_and_is_named_by_file_and_line(copy: Path) -> None:
    config = copy / "artifacts/merged/config.json"
    config.write_text(config.read_text().replace("{", '{\n  "note": "hf_' + "x" * 30 + '",', 1))
    manifest = store.read_manifest(config.parent)
    manifest["files"]["config.json"] = {"size": config.stat().st_size, "sha256": store.hash_file(config)}
    store.write_json(config.parent / "manifest.json", manifest)
    (shown,) = publish(copy, None, [], {}).findings
    assert (shown.file, shown.line, shown.what) == ("config.json", 2, "a Hugging Face token")
    with pytest.raises(InputError, match=r"config\.json: line 2: a Hugging Face token; nothing was sent"):
        publish(copy, "me/tiny", [], {"HF_TOKEN": TOKEN})


def test_a_run_without_a_final_model_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "artifacts/merged")
    with pytest.raises(InputError, match="final stage 'merged' has not finished"):
        publish(copy, None, [], {})


def test_a_damaged_model_does_not_leave(copy: Path, server: Hub) -> None:
    (weights,) = (copy / "artifacts").glob("*/model.safetensors")
    whole = weights.read_bytes()
    for damaged, told in (
        (whole[:-8], "has .* bytes, .* were written"),
        (whole[:-1] + b"!", "is not what was written"),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{weights.parent}: damaged: model\.safetensors {told}"):
            commands.publish(copy, "me/tiny", [])
    assert server.calls == []


EDITED = {
    "recipe.yaml": [
        "stages: [",
        "- a\n",
        "",
        "recipe: x\nstages: [a]\n",
        "recipe: x\nstages: {a: 1}\n",
        "stages: {}\n",
        "recipe: x\nstages: {}\nseed: z\n",
    ],
    "plan.json": ["{", "[]", '{"stages": 3}', '{"stages": [3]}'],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in EDITED.items() for text in texts])
def test_files_of_a_run_that_were_edited_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text("recipe: x\nstages: {}\n")
    assert read_run(tmp_path).name == "x"
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{tmp_path / name}(:\d+)?: "):
        read_run(tmp_path)


def test_an_unknown_setting_is_refused(finished: Path) -> None:
    with pytest.raises(InputError, match="privat"):
        publish(finished, None, ["privat=false"], {})


# ------------------------------------------------------------------------------ the scan


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token: hf_" + "a1" * 15, "a Hugging Face token"),
        ("key = 'sk-" + "proj-" + "a" * 24 + "'", "an OpenAI or Anthropic key"),
        ("AKIA" + "ABCDEFGH" * 2, "an AWS key"),
        ("ghp_" + "b" * 36, "a GitHub token"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("path: /home/" + "someone/data.jsonl", "a path of a home directory"),
        ("C:\\Users\\" + "someone\\data", "a path of a home directory"),
        ("it is swordfish-42", "the value of MY_API_KEY"),
        ("nothing to see: task-force, skills, /home, hf_transfer", None),
    ],
)
def test_the_scan(text: str, what: str | None, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("one line\n" + text)
    found = list(scan(tmp_path, ["note.md"], {"MY_API_KEY": "swordfish-42", "EDITOR_KEY": "vi"}))
    assert [(f.line, f.what) for f in found] == ([(2, what)] if what else [])


def test_the_scan_reads_heads_of_weights_and_leaves_vocabularies_their_paths(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\0\1 made in " + str(tmp_path.parent).encode() + b"/here")
    (tmp_path / "tokenizer.json").write_text('["/home/' + 'user/"]')
    found = list(scan(tmp_path, ["model.safetensors", "tokenizer.json"], {}))
    assert [(f.file, f.line, f.what) for f in found] == [
        ("model.safetensors", 0, "a path of this machine (the run's directory)")
    ]


def test_the_tree_is_drawn_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    stream.isatty = lambda: True
    print_tree(
        "model", [(".eval_results/aime25.yaml", 312), ("README.md", 4700), ("model.gguf", 15_700_000_000)], stream
    )
    assert stream.getvalue().splitlines()[1:3] == ["├── .eval_results/", "│   └── aime25.yaml  312 bytes"]
    assert stream.getvalue().endswith("3 files, 15.7 GB\n")
    assert [size(n) for n in (0, 999, 1000, 144_408, 4_737_984)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "144 kB",
        "4.7 MB",
    ]


# ------------------------------------------------------------------------------ what lies beside the weights


def test_the_card_embeds_the_recipe_and_names_no_place_of_this_machine(finished: Path) -> None:
    card = (finished / "model/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    for told in ("| merged | – | mit |", "path: <local>/problems.jsonl", "## Cost", "## Accuracy"):
        assert told in body, told
    assert str(finished.parent) not in card
    assert str(finished.parent) in (finished / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("stated", "hub_id", "told"),
    [
        ([("a", "MIT"), ("b", "Apache-2.0")], "apache-2.0", "Apache-2.0 (permissive)"),
        ([("a", "Apache-2.0"), ("b", "CC BY-SA 4.0")], "cc-by-sa-4.0", "CC BY-SA (share-alike)"),
        ([("a", "cc-by-nc-4.0"), ("b", "GPL-3.0")], "cc-by-nc-4.0", "CC BY-NC (no commercial use)"),
        ([("a", "GPL-3.0"), ("b", "CC BY-SA 4.0")], "other", "GPL and CC BY-SA (share-alike)"),
        ([("a", "problems © HMMT; data set CC BY-NC-SA 4.0")], "other", "all rights reserved"),
        ([("a", "MIT"), ("b", "")], "unknown", "no licence is known of b. The most restrictive of those that are known: MIT"),
        ([("a", "the Foo terms")], "unknown", "no licence is known of a."),
        ([], "unknown", "Nothing states a licence."),
    ],
)  # fmt: skip
def test_licences_together(stated: list[tuple[str, str]], hub_id: str, told: str) -> None:
    rolled = licences.together(stated)
    assert rolled.hub_id == hub_id and told in rolled.told


def test_the_licence_of_a_model_is_what_its_card_says(tmp_path: Path) -> None:
    assert licences.of_model("embedded:fathom-tiny-base") == "apache-2.0"
    assert licences.of_model("nobody/has-this-in-a-cache") == licences.of_model(str(tmp_path)) == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\n")
    assert licences.of_model(str(tmp_path)) == "llama3"


def row(benchmark: str, problems: int, model: str = "merged", **more: object) -> dict:
    drawn = {"temperature": 0.6, "top_p": 0.95, "samples": 64, "max_tokens": 16384}
    measured = {
        "pass1": 0.52714,
        "pass1_ci": [0.481, 0.572],
        "cons": 0.7,
        "vs_base": None,
        "tokens_mean": 9000,
        "truncated": 0,
    }
    return {"model": model, "benchmark": benchmark, "problems": problems, **drawn, **measured, **more}


def test_results_in_the_hubs_form(finished: Path) -> None:
    run = read_run(finished)
    rows = (
        row("aime25", 30), row("aime25", 30, temperature=1.0), row("aime25", 30, model="base"),
        row("gpqa-diamond", 198), row("hmmt25", 10), row("sums", 4),
    )  # fmt: skip
    evaluated = Stage(
        "eval", finished, {"op": "evaluate", "config": {"benchmarks": [{"name": "gpqa-diamond", "path": "x"}]}}
    )
    files = eval_results.files(replace(run, rows=rows, stages=(*run.stages, evaluated)))
    assert list(files) == [f".eval_results/{name}.yaml" for name in ("aime25", "aime25.2", "gpqa-diamond")]
    first, second, third = (parse_eval_result_entries(yaml.safe_load(text))[0] for text in files.values())
    assert (first.dataset_id, first.task_id, first.value) == ("math-ai/aime25", "default", 52.71)
    assert first.dataset_revision and len(first.date) == 10
    assert first.notes.endswith("at most 16,384 tokens; 95% interval 48.1 to 57.2")
    assert "temperature 1," in second.notes
    assert (third.task_id, third.dataset_revision) == ("gpqa_diamond", None)
    assert third.notes.endswith("problems read from a local copy")


def test_gguf_files_of_the_final_model_go_with_it_and_those_of_others_do_not(copy: Path) -> None:
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    for name, model in (("quantized", "merged"), ("elsewhere", "base")):
        recipe["stages"][name] = {"op": "gguf", "model": model}
        aside = store.start(copy / "artifacts", name, 1)
        (aside / f"{name}.gguf").write_bytes(b"GGUF")
        manifest = {"op": "gguf", "key": name, "config": {"model": model}}
        store.finish(aside, copy / "artifacts" / name, manifest)
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    names = [name for name, _ in publish(copy, None, [], {}).files]
    assert "quantized.gguf" in names and "elsewhere.gguf" not in names


def test_certificates_and_results_go_beside_the_model(finished: Path) -> None:
    run: Run = read_run(finished)
    trained = Stage("part", finished, {"op": "sft", "parts": {"inputs": {"clean": "key"}}, "config": {}, "files": {}})
    beside = model_card.beside_model(replace(run, rows=(row("aime25", 30),), stages=(*run.stages, trained)))
    assert sorted(beside) == [".eval_results/aime25.yaml", "README.md", "clean.certificate.json", "data_card.md"]
    assert json.loads(beside["clean.certificate.json"])["problems"] == {"read": 4, "removed": 0, "kept": 4}
    assert "Stage clean compared 4 problems" in beside["README.md"]
