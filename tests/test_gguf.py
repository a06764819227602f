"""A GGUF is the model it was made from: read back by transformers' own reader, and run by llama.cpp (`make proof`)."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from jinja2 import Environment
from models import write_model
from peer_environment import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from fathom.errors import InputError
from fathom.gguf.config import GgufConfig
from fathom.gguf.export import run_gguf, write_gguf
from fathom.gguf.template import ollama_template
from fathom.ledger import Meter
from fathom.records import Message
from fathom.tokens import history_text, load_tokenizer, prompt_text

BASE = Path(str(files("fathom") / "data/fathom-tiny-base"))
TYPES = ["f32", "bf16", "f16", "q8_0"]
LLAMA = os.environ.get("FATHOM_LLAMA_CPP")
QUESTIONS = ["What is 17 + 4 * 5?", "A box holds 12 eggs. How many eggs are in 7 boxes?", "Compute 91 - 38.", "2 + 2"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf")
    run_gguf({"model": BASE}, GgufConfig(model="base", types=TYPES), out, Meter.null(out / "scratch"))
    return out


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 0), ("bf16", 0), ("f16", 1e-7), ("q8_0", 0.01)])
def test_every_weight_comes_back(exported: Path, kind: str, tolerance: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(exported, gguf_file=f"model-{kind}.gguf", dtype=torch.float32)
    assert list(other.state_dict()) == list(model.state_dict())
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert (theirs - ours).norm() <= tolerance * ours.norm(), name
    for key in ("hidden_size", "num_key_value_heads", "vocab_size", "max_position_embeddings"):
        assert getattr(other.config, key) == getattr(model.config, key)
    assert other.config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]


def test_the_tokenizer_comes_back(exported: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(exported, gguf_file="model-q8_0.gguf"), load_tokenizer(BASE)
    for text in [*QUESTIONS, "naïve\n\n  <think>x</think> 12345 it's", history_text(ours, [Message("user", "hi")])]:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"], text
    assert theirs.chat_template == ours.chat_template


def test_the_modelfile_names_file_sampling_and_a_context_that_the_model_has(exported: Path) -> None:
    text = (exported / "Modelfile").read_text()
    assert text.startswith("FROM ./model-f32.gguf\n")
    assert text.endswith('stop "<|im_end|>"\nPARAMETER temperature 0.6\nPARAMETER top_p 0.95\nPARAMETER num_ctx 2048\n')


def as_jinja(template: str) -> str:
    """The few words of Go's templates that a Modelfile uses, in Jinja's spelling."""
    words = [
        (r"if \.System", "% if system %"), (r'if eq \$m\.Role "(\w+)"', r'% if m.role == "\1" %'),
        (r'else if eq \$m\.Role "(\w+)"', r'% elif m.role == "\1" %'), ("else", "% else %"),
        (r"range \$m := \.Messages", "% for m in messages %"),
    ]  # fmt: skip
    for go, jinja in words:
        template = re.sub(r"\{\{ " + go + r" \}\}", "{" + jinja + "}", template)
    opened = []
    for word in re.findall(r"\{% (if|for)|(\{\{ end \}\})", template):
        if word[0]:
            opened.append(word[0])
        else:
            template = template.replace("{{ end }}", f"{{% end{opened.pop()} %}}", 1)
    return template.replace("{{ .System }}", "{{ system }}").replace("{{ $m.Content }}", "{{ m.content }}")


DEEPSEEK = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% set system = m['content'] %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
"""The form of the R1 distillations: no end after a question, the system prompt bare, thinking opened."""
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, DEEPSEEK, DEFAULT_SYSTEM], ids=["shipped", "deepseek", "default system"])
def test_ollamas_template_renders_what_the_models_own_does(template: str | None, tmp_path: Path) -> None:
    model = BASE if template is None else write_model(tmp_path / "model", template=template)
    tokenizer = load_tokenizer(model)
    render = Environment(keep_trailing_newline=True).from_string(as_jinja(ollama_template(model).text)).render
    turns = [Message("user", "What?"), Message("assistant", "That."), Message("user", "And?\n")]
    for system in ("", "Be brief."):
        for count in (1, 3):
            said = [{"role": m.role, "content": m.content} for m in turns[:count]]
            whole = [*([Message("system", system)] if system else []), *turns[:count]]
            assert render(system=system, messages=said) == prompt_text(tokenizer, whole)


def test_a_template_whose_turns_depend_on_one_another_is_refused(tmp_path: Path) -> None:
    counts = "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="no form for Ollama"):
        ollama_template(write_model(tmp_path, template=counts))


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        (
            "config.json",
            "model_type",
            "llama",
            "GGUF is written for qwen2 and qwen3; llama.cpp's convert_hf_to_gguf.py",
        ),
        ("config.json", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "rope_type 'yarn'"),
        ("config.json", "use_sliding_window", True, "only full attention"),
        ("config.json", "num_key_value_heads", None, "config.json: no num_key_value_heads; a GGUF needs"),
        ("tokenizer.json", "pre_tokenizer", {"type": "Whitespace"}, "not Qwen2's tokenizer"),
        ("config.json", "vocab_size", 800, "9 tokens more than vocab_size"),
        ("config.json", "num_hidden_layers", 1, "weights of 5 layers, and num_hidden_layers in config.json is 1"),
    ],
)
def test_what_would_not_be_the_same_model_is_refused(file, key, value, told, tmp_path: Path) -> None:
    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    changed = json.loads((model / file).read_text()) | {key: value}
    (model / file).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=re.escape(told)):
        write_gguf(model, tmp_path / "model.gguf", "f32")


def test_rows_that_are_no_whole_blocks_fall_back_to_sixteen_bits(tmp_path: Path) -> None:
    model = write_model(tmp_path / "odd", extra=763, hidden_size=48, num_attention_heads=3, num_key_value_heads=1)
    shutil.copy(BASE / "tokenizer.json", model)
    write_gguf(model, tmp_path / "odd.gguf", "q8_0")
    stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "odd.gguf").tensors}
    assert stored["token_embd.weight"] == stored["output.weight"] == stored["blk.0.attn_q.weight"] == "F16"
    assert stored["blk.1.ffn_down.weight"] == "Q8_0"
    assert stored["blk.0.attn_q.bias"] == stored["output_norm.weight"] == "F32"


@pytest.mark.proof
@pytest.mark.skipif(
    not LLAMA, reason="set FATHOM_LLAMA_CPP to a Python that has llama-cpp-python (docs/run-fathom-r1-14b.md)"
)
@pytest.mark.parametrize("kind", TYPES)
def test_llama_cpp_continues_as_transformers_does(exported: Path, kind: str, tmp_path: Path) -> None:
    """Greedy chains, token for token, of the very weights that the file holds (read back, where they are rounded)."""
    tokenizer = load_tokenizer(BASE)
    prompts = [prompt_text(tokenizer, [Message("user", question)]) for question in QUESTIONS]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    told = run(Path(LLAMA), "peer_llamacpp.py", exported / f"model-{kind}.gguf", tmp_path / "prompts.json", "128")
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert told["prompts"] == ids
    assert told["template"] == tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(exported, gguf_file=f"model-{kind}.gguf", dtype=torch.float32)
    for start, chain in zip(ids, told["chains"], strict=True):
        ours = model.generate(
            torch.tensor([start]), do_sample=False, max_new_tokens=128, eos_token_id=2, pad_token_id=0
        )
        assert chain == ours[0, len(start) :].tolist()
