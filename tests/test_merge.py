"""The streaming merge: exact arithmetic, bounded memory, and parents that can't be averaged refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import PLAIN_TEMPLATE, write_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.merge import MergeConfig, mean_tensor, run_merge, split_shards
from fathom.weights import TensorEntry, tensor_entries


def merge(tmp_path: Path, *parents: Path, **settings) -> Path:
    out = tmp_path / "merged"
    out.mkdir(exist_ok=True)
    config = MergeConfig(models=[path.name for path in parents], **settings)
    run_merge({"models": list(parents)}, config, out, Meter.null(tmp_path))
    return out


def load_all(model: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in model.glob("*.safetensors") for name, t in load_file(file).items()}


def test_weighted_mean_loads_with_transformers(tmp_path):
    a = write_model(tmp_path / "v06", seed=1, dtype=torch.bfloat16)
    b = write_model(tmp_path / "v04", seed=2, dtype=torch.bfloat16, max_shard_size="20KB")
    out = merge(tmp_path, a, b, weights=[3, 1])
    ours, one, two = load_all(out), load_all(a), load_all(b)
    assert ours.keys() == one.keys()
    for name, tensor in ours.items():
        expected = (0.75 * one[name].double() + 0.25 * two[name].double()).to(torch.bfloat16)
        assert torch.equal(tensor, expected), name
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("2+2", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape == (1, 6)
    card = (out / "README.md").read_text()
    assert "| `v06` | 0.75 |" in card and "| `v04` | 0.25 |" in card


def test_mean_by_hand(tmp_path):
    entries = []
    for i, value in enumerate((1.0, 2.0, 7.0)):
        save_file({"w": torch.tensor([value, -value], dtype=torch.float16)}, tmp_path / f"{i}.safetensors")
        entries.append(TensorEntry("w", tmp_path / f"{i}.safetensors", "F16", (2,)))
    assert mean_tensor(entries, [0.5, 0.25, 0.25]).tolist() == [2.75, -2.75]


def test_eight_bits_are_not_averaged(tmp_path):
    save_file({"w": torch.ones(2, dtype=torch.float8_e4m3fn)}, tmp_path / "8.safetensors")
    entry = TensorEntry("w", tmp_path / "8.safetensors", "F8_E4M3", (2,))
    with pytest.raises(InputError, match=r"8\.safetensors: tensor 'w' has eight bits"):
        mean_tensor([entry, entry], [0.5, 0.5])


def test_merging_a_model_with_itself_gives_its_own_bytes(tmp_path):
    a = write_model(tmp_path / "a", dtype=torch.bfloat16)
    out = merge(tmp_path, a, a)
    for name, tensor in load_all(a).items():
        assert torch.equal(load_all(out)[name], tensor)


def test_shards_are_bounded_indexed_and_do_not_change_the_weights(tmp_path):
    a, b = write_model(tmp_path / "a", seed=1), write_model(tmp_path / "b", seed=2)
    whole = load_all(merge(tmp_path, a, b))
    (tmp_path / "s").mkdir()
    out = merge(tmp_path / "s", a, b, shard_bytes=40_000)
    entries = tensor_entries(out)
    sizes: dict[Path, int] = {}
    for entry in entries.values():
        sizes[entry.file] = sizes.get(entry.file, 0) + entry.bytes
    assert len(sizes) > 3 and max(sizes.values()) <= 40_000
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert AutoModelForCausalLM.from_pretrained(out).state_dict().keys() >= whole.keys()
    for name, tensor in load_all(out).items():
        assert torch.equal(tensor, whole[name])


def test_a_tensor_larger_than_a_shard_stands_alone(tmp_path):
    tensors = [TensorEntry(str(i), tmp_path, "F32", (n,)) for i, n in enumerate((2, 100, 2, 2))]
    assert [[t.name for t in shard] for shard in split_shards(tensors, 16)] == [["0"], ["1"], ["2", "3"]]


def edit_config(**changes):
    def edit(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def edit_tensors(change):
    def edit(model: Path) -> None:
        tensors = load_all(model)
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_tokenizer(change):
    def edit(model: Path) -> None:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        change(tokenizer)
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))

    return edit


swap_tokens = edit_tokenizer(lambda t: t["model"]["vocab"].update({"!": 1, '"': 0}))
lower_case = edit_tokenizer(lambda t: t.update(normalizer={"type": "Lowercase"}))
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("make", "edit", "difference"),
    [
        ({"template": PLAIN_TEMPLATE}, None, "chat templates or special tokens differ"),
        ({"extra": 3}, None, "the vocabularies have 261 and 264 tokens"),
        ({}, swap_tokens, "token '!' has the ids 0 and 1"),
        ({}, lower_case, "cut text differently"),
        ({"hidden_size": 48}, None, "config.json: hidden_size is 32 and 48"),
        ({}, edit_config(rope_parameters={"rope_type": "default", "rope_theta": 5.0}), "rope_parameters"),
        (
            {},
            edit_tensors(lambda t: t.update({NORM: t[NORM].double()})),
            "'model.norm.weight' has the dtypes F32 and F64",
        ),
        (
            {},
            edit_tensors(lambda t: t.update({NORM: t[NORM][:16].clone()})),
            r"'model.norm.weight' has the shapes \(32,\) and \(16,\)",
        ),
        ({}, edit_tensors(lambda t: t.pop(NORM)), "'model.norm.weight' is only in .*one"),
        ({"dtype": torch.bfloat16}, edit_config(dtype="float32"), "has the dtypes F32 and BF16"),
    ],
)
def test_parents_that_differ_are_refused_by_name(tmp_path, make, edit, difference):
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two", **make)
    if edit:
        edit(two)
    with pytest.raises(InputError, match=difference) as caught:
        merge(tmp_path, one, two)
    message = str(caught.value)
    assert message.startswith(f"can't merge 'one' ({one}) with 'two' ({two}): ") and "\n" not in message
    assert list((tmp_path / "merged").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["a"]}, "at least 2"),
        ({"models": ["a", "b"], "weights": [1.0]}, "2 models and 1 weights"),
        ({"models": ["a", "b"], "weights": [1.0, -1.0]}, "sum to more than 0"),
    ],
)
def test_configs_that_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        MergeConfig(**settings)


CHILD = """
import resource
import sys
from pathlib import Path
from fathom.ledger import Meter
from fathom.merge import MergeConfig, run_merge
*parents, out = map(Path, sys.argv[1:])
config = MergeConfig(models=["a", "b", "c"], shard_bytes=8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run_merge({"models": parents}, config, out, Meter.null(out))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "transformers.models.qwen2.modeling_qwen2" in sys.modules)
"""


def test_memory_is_that_of_a_shard_and_no_model_class_is_loaded(tmp_path):
    """Three parents of 120 MB and an output of 120 MB: the process may grow by less than one of them."""
    parents = []
    for i in range(3):
        parent = write_model(tmp_path / f"{i}", seed=i)
        tensors = load_file(parent / "model.safetensors")
        for n in range(30):
            tensors[f"filler.{n}"] = torch.full((1_000_000,), float(i + n))
        save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
        parents.append(parent)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, parents), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, loaded_model_class = done.stdout.split()
    assert int(grown) < 60e6
    assert loaded_model_class == "False"
    assert load_all(tmp_path / "out")["filler.5"][0].item() == 6.0
