"""Text to tokens: the only place where a chat template is applied.

A prompt is what the template renders with its generation prompt; a training row is exactly
those prompt ids followed by the completion. The completion is spelled here and not by the
template, because the templates of reasoning models strip the thinking from assistant turns.
This module knows nothing of models, batches or losses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fathom.errors import InputError, first_line
from fathom.records import Example, Message

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class EncodedExample:
    """One training row of T tokens.

    ids: T token ids. weights: T floats; weights[t] is the weight of the loss of predicting
    ids[t] from ids[:t]: 0 on the prompt, 1 on the completion, its end-of-turn token included.
    prompt_tokens: how many of the ids are the prompt.
    """

    id: str
    ids: list[int]
    weights: list[float]
    prompt_tokens: int

    @property
    def trained_tokens(self) -> int:
        return sum(weight != 0 for weight in self.weights)


def load_tokenizer(model_dir: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local Hugging Face model directory; never touches the network.

    tokenizer.json is taken at its word. (AutoTokenizer of transformers 5 puts the normalizer and
    the pre-tokenizer of Qwen2's own class in place of those in the file wherever model_type is
    qwen2, so a model with another pre-tokenizer would read text as it was never trained to.)
    Raises InputError when the directory holds no tokenizer or the tokenizer has no chat template.
    """
    model_dir = Path(model_dir)
    if not (model_dir / "tokenizer.json").is_file() and not (model_dir / "tokenizer_config.json").is_file():
        raise InputError(f"{model_dir}: not a model directory (no tokenizer.json)")
    try:
        if (model_dir / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library's own, of any kind, for files that are not what they should be
        raise InputError(f"{model_dir}: the tokenizer can't be read ({first_line(error)})") from error
    if not _ids(tokenizer, "1 + 1"):  # what AutoTokenizer makes of a configuration without a vocabulary
        raise InputError(f"{model_dir}: the tokenizer knows no text (its vocabulary is missing: no tokenizer.json)")
    if not tokenizer.chat_template:
        raise InputError(f"{model_dir}: the tokenizer has no chat template")
    return tokenizer


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation with the generation prompt appended; sampling continues from here."""
    return _ids(tokenizer, prompt_text(tokenizer, messages))


def raw_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt to which no template is applied; control tokens in it are read as such."""
    return _ids(tokenizer, text)


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text that `render_prompt` tokenizes, for people and for engines that take text."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def history_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation as the template renders what has been said, with no answer begun."""
    return _render(tokenizer, messages, add_generation_prompt=False)


def completion_text(prompt: str, answer: Message) -> str:
    """What the model should have written after `prompt` to give `answer`, without the end-of-turn token.

    reasoning + `</think>` + content, both verbatim, so a sampled chain that was split at the tag
    comes back as it was written. `<think>` is written only where the prompt does not already end
    with it; whitespace that the prompt puts after the tag is not repeated.
    """
    opened = prompt.rstrip().endswith(THINK)
    if answer.reasoning is not None:
        text = answer.reasoning + END_THINK + answer.content
    elif opened and END_THINK not in answer.content:
        text = END_THINK + answer.content
    else:
        text = answer.content
    writes_tag = text.lstrip().startswith(THINK)
    if opened:
        text = text.lstrip().removeprefix(THINK) if writes_tag else text
        return text.removeprefix(prompt[len(prompt.rstrip()) :])
    return THINK + text if END_THINK in text and not writes_tag else text


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Example) -> EncodedExample:
    """The row that training sees: the ids of `render_prompt` and then the completion.

    Raises InputError, naming the example, when it does not end in an assistant turn or that
    turn is empty.
    """
    if not example.messages or example.messages[-1].role != "assistant":
        raise InputError(f"example {example.id!r}: the last message must be the assistant's")
    *context, answer = example.messages
    if not context:
        raise InputError(f"example {example.id!r}: there is no message before the assistant's")
    if not (answer.content.strip() or (answer.reasoning or "").strip()):
        raise InputError(f"example {example.id!r}: the assistant's turn is empty, so every token would be masked")
    prompt = prompt_text(tokenizer, context)
    prompt_ids = _ids(tokenizer, prompt)
    completion_ids = [*_ids(tokenizer, completion_text(prompt, answer)), end_of_turn_id(tokenizer)]
    return EncodedExample(
        id=example.id,
        ids=prompt_ids + completion_ids,
        weights=[0.0] * len(prompt_ids) + [1.0] * len(completion_ids),
        prompt_tokens=len(prompt_ids),
    )


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the template writes after an assistant turn; the end-of-text token where it writes none.

    (A base model's end-of-text token often differs from its template's end of turn.)
    """
    probe = "the-answer-goes-here"
    turns = [Message("user", "question"), Message("assistant", probe)]
    tail = _render(tokenizer, turns, add_generation_prompt=False).rpartition(probe)[2].strip()
    tail_ids = _ids(tokenizer, tail) if tail else []
    if tail_ids and tail_ids[0] in tokenizer.added_tokens_decoder:
        return tail_ids[0]
    if tokenizer.eos_token_id is None:
        raise InputError("the chat template ends a turn with no token and the tokenizer has no end-of-text token")
    return tokenizer.eos_token_id


def stop_ids(tokenizer: PreTrainedTokenizerBase, model_dir: Path | str) -> list[int]:
    """Sorted ids at which sampling stops: end of turn, end of text, and those of generation_config.json."""
    found = {end_of_turn_id(tokenizer)}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    path = Path(model_dir) / "generation_config.json"
    if path.is_file():
        try:
            declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError):
            raise InputError(f"{path}: expected a JSON object") from None
        declared = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if not all(type(number) is int for number in declared):
            raise InputError(f"{path}: eos_token_id: expected token ids, got {declared!r}")
        found.update(declared)
    return sorted(found)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what the template depends on: equal hashes give equal prompts for equal vocabularies."""
    parts = {
        "template": tokenizer.chat_template,
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    turns = [
        {"role": m.role, "content": m.content}
        if m.reasoning is None
        else {"role": m.role, "content": m.content, "reasoning_content": m.reasoning}
        for m in messages
    ]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program of the model's maker
        where = tokenizer.name_or_path
        raise InputError(f"{where}: the chat template can't render this conversation ({first_line(error)})") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is not text in UTF-8 (it holds half of a surrogate pair)") from None
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
