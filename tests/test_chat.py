"""`fathom chat`: a conversation over the shared engine, in a pipe and in a real pseudo-terminal."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import pexpect
import pytest

import fathom
from fathom.cli import main
from fathom.engines import Completion, TransformersConfig, open_engine
from fathom.errors import InputError, WorkError
from fathom.prices import load_prices
from fathom.records import Sampling
from fathom.serve.chat import Conversation, Settings, configure, usd_per_hour
from fathom.serve.live import Live
from fathom.serve.served import Served, served_model
from fathom.serve.terminal import BOLD_PROMPT, Terminal, figures, tally

ROOT = Path(__file__).parents[1]
TINY = Path(fathom.__file__).parent / "data" / "fathom-tiny-base"


class Known:
    """An engine whose answers are known, in turns; it keeps what it was asked."""

    name, device = "known", "cpu"

    def __init__(self, *answers: str):
        self.answers, self.asked = answers, []

    def generate(self, requests, sampling):
        for request in requests:
            self.asked.append((request, sampling))
            for index in range(request.first, request.first + request.samples):
                answer = self.answers[index % len(self.answers)]
                if answer == "fail":
                    raise RuntimeError("out of memory")
                yield Completion(request.key, index, f"I think.</think>\n\\boxed{{{answer}}}", 10, "stop", 5)

    def close(self):
        pass


def talk(*answers, served=None, hourly=3600.0, **settings):
    engine = Known(*answers)
    conversation = Conversation(
        Live(engine), served or Served("known", opened=True), Settings(Sampling(max_tokens=100), **settings), hourly
    )
    return conversation, engine


def last(growing):
    *_, turn = growing
    return turn


@pytest.fixture(scope="module")
def tiny():
    engine = open_engine(TransformersConfig(slots=16), TINY)
    with closing(Live(engine)) as live:
        yield live, served_model(TINY, "tiny", 2048)


def test_an_answer_is_split_counted_and_priced():
    conversation, engine = talk("7", prompt="plain")
    turn = last(conversation.ask("What is 3 + 4?"))
    assert (turn.thinking, turn.answer.strip(), turn.tokens, turn.prompt_tokens) == ("I think.", "\\boxed{7}", 10, 5)
    assert turn.finish == "stop"
    assert turn.usd == pytest.approx(turn.seconds)
    assert engine.asked[0][0].messages[0].content == "What is 3 + 4?"


@pytest.mark.parametrize("memory", [True, False])
def test_what_was_said_before_comes_along_or_does_not(memory):
    conversation, engine = talk("7", prompt="plain", memory=memory, system="Be brief.")
    last(conversation.ask("one"))
    last(conversation.ask("two"))
    said = [(m.role, m.content.strip()) for m in engine.asked[1][0].messages]
    before = [("user", "one"), ("assistant", "\\boxed{7}")] if memory else []
    assert said == [("system", "Be brief."), *before, ("user", "two")]
    conversation.forget()
    last(conversation.ask("three"))
    assert len(engine.asked[2][0].messages) == 2


def test_the_oldest_turns_are_left_out_where_an_answer_would_have_no_room():
    def tokens(request):
        return 50 * len(request.messages)

    conversation, engine = talk("7", served=Served("known", opened=True, positions=300, prompt_tokens=tokens))
    for question in "abc":
        last(conversation.ask(question))
    assert [len(request.messages) for request, _ in engine.asked] == [1, 3, 3]
    conversation.settings.sampling = Sampling(max_tokens=1000)
    last(conversation.ask("d"))
    assert (len(engine.asked[-1][0].messages), engine.asked[-1][1].max_tokens) == (1, 250)


def test_a_vote_is_the_consensus_and_counts_all_chains():
    conversation, _ = talk("7", "8", "7", votes=9)
    seen = [(turn.chains, dict(turn.votes)) for turn in conversation.ask("?")]
    (turn,) = conversation.turns
    assert [chains for chains, _ in seen] == sorted(chains for chains, _ in seen)
    assert (turn.consensus.answer, turn.answer.strip()) == ("7", "\\boxed{7}")
    assert turn.tokens == 10 * turn.chains == turn.consensus.tokens
    assert tally(turn).splitlines()[0].split() == [str(turn.votes["7"]), "█" * 24, "7"]
    assert f"{turn.votes['7']} of {turn.chains} chains agree" in figures(turn)


def test_closing_an_answer_keeps_what_came_and_frees_the_engine(tiny):
    live, served = tiny
    conversation = Conversation(live, served, Settings(Sampling(max_tokens=600)))
    growing = conversation.ask("A sequence starts 11, 19, 27, 35 and goes on in equal steps. Find term number 14.")
    for turn in growing:
        if turn.tokens >= 3:
            break
    with pytest.raises(InputError, match="still grows"):
        next(conversation.ask("another"))
    growing.close()
    (turn,) = conversation.turns
    assert (turn.finish, turn.usd) == (None, None)
    assert turn.thinking
    assert live.running == live.waiting == 0


@pytest.mark.parametrize("votes", [1, 16])
def test_an_answer_can_be_stopped_from_another_thread(tiny, votes):
    live, served = tiny
    conversation = Conversation(live, served, Settings(Sampling(max_tokens=600), votes=votes))
    timer = threading.Timer(0.2, conversation.stop)
    timer.start()
    for _ in conversation.ask("Compute (17 * 27 + 62 + 15) mod 6."):
        pass
    timer.join()
    assert conversation.turns[0].consensus is None
    assert live.running == 0
    assert last(Conversation(live, served, Settings(Sampling(max_tokens=60))).ask("What is 2 + 3?")).finish


def test_a_budget_brings_the_model_to_its_answer(tiny):
    live, served = tiny
    conversation = Conversation(live, served, Settings(Sampling(max_tokens=300), budget=5))
    turn = last(conversation.ask("What is 12 + 30?"))
    assert turn.thinking_tokens < 20
    assert turn.answer.strip()


def test_what_goes_wrong_is_told_and_the_conversation_goes_on():
    conversation, _ = talk("fail")
    with pytest.raises(WorkError, match="out of memory"):
        last(conversation.ask("?"))
    conversation.served = Served("x", control=("<|im_end|>",))
    with pytest.raises(InputError, match="control token"):
        last(conversation.ask("a<|im_end|>b"))


def test_settings_come_from_the_model_and_the_command_line():
    config = configure(TINY, ["votes=4", "sampling.temperature=0"])
    settings = Settings.of(config, 2048)
    assert (settings.votes, settings.sampling.max_tokens, settings.memory) == (4, 1024, False)
    assert Settings.of(config, 32768).memory
    with pytest.raises(InputError, match="vote"):
        configure(TINY, ["vote=4"])
    with pytest.raises(InputError, match="prompt template 'solv' does not exist"):
        configure(TINY, ["prompt=solv"])


def test_the_price_is_that_of_the_device():
    prices = load_prices()
    assert usd_per_hour(prices, "cpu") == prices.devices["cpu"].usd_per_hour
    assert usd_per_hour(prices, "cuda", "h200") == prices.devices["h200"].usd_per_hour
    with pytest.raises(InputError, match="no device 'abacus'"):
        usd_per_hour(prices, "cpu", "abacus")


QUIET = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_in_a_pipe_answers_alone_go_to_stdout(tmp_path, monkeypatch, capsys):
    lines = [
        "What is 17 + 4 * 5?",
        "/votes 4",
        "",
        "\udcff?",
        "Find the value of 20 - 7.",
        "/votes x",
        "/nope",
        "/quit",
        "never",
    ]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    asked = io.BytesIO("\n".join(lines).encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(asked, "utf-8"))
    monkeypatch.setattr(sys, "argv", ["fathom", "chat", "--set", "sampling.max_tokens=200"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = capsys.readouterr()
    answers = [line for line in told.out.splitlines() if line]
    assert len(answers) == 2
    assert all("boxed" in answer for answer in answers)
    assert "\x1b" not in told.out + told.err
    assert told.err.count("tokens/s · $") == 2
    assert "chains agree" in told.err
    assert "/votes: expected a whole number from 1 to 1,024, got 'x'" in told.err
    assert "/nope: no such command" in told.err
    assert told.err.count("the prompt is not text in UTF-8") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variable", "value", "prompt"), [("NO_COLOR", "1", "› "), ("TERM", "dumb", "› "), ("TERM", "xterm", BOLD_PROMPT)]
)
def test_the_prompt_is_bold_where_that_is_wanted(monkeypatch, variable, value, prompt):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdin", Screen())
    monkeypatch.setattr(sys, "stdout", Screen())
    shown = []
    monkeypatch.setattr("builtins.input", lambda prompt: shown.append(prompt) or "/quit")
    Terminal(talk("1")[0]).run()
    assert shown == [prompt]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal(tmp_path):
    """Thinking dimmed and folded, Ctrl-C, votes, a line from the history, which is kept in a file."""
    env = {**os.environ, **QUIET, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)

    arguments = ["-m", "fathom", "chat", "--set", "sampling.max_tokens=500"]
    ignored = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a background job of a script has it
    size = {"dimensions": (40, 100), "preexec_fn": ignored}
    chat = pexpect.spawn(sys.executable, arguments, env=env, encoding="utf-8", timeout=90, **size)
    chat.expect("an hour.*every question stands alone.*/help")
    chat.sendline("What is 17 + 4 * 5?")
    chat.expect("\x1b\\[2m")  # dim
    chat.expect(r"boxed.*tokens, \d+ of them thinking.*tokens/s · \$0\.\d+")
    chat.sendline("/fold")
    chat.expect("folded away")
    chat.sendline("Compute (17 * 27 + 62 + 15) mod 6.")
    chat.expect(r"thinking: \d+ tokens")
    chat.sendintr()
    chat.expect(r"interrupted: [\d,]+ tokens came and are kept")
    chat.sendline("/fold")  # what came of the thinking is shown
    chat.expect(r"\w+")
    chat.sendline("/votes 5")
    chat.expect("up to 5 chains vote")
    chat.sendline("What is the greatest common divisor of 21 and 15?")
    chat.expect("of at most 5 chains")
    chat.expect("█.*chains agree.*tokens/s")
    chat.send("\x1b[A")
    chat.expect("greatest common divisor of 21 and 15")
    chat.sendintr()
    chat.expect("› ")
    chat.sendeof()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
    history = tmp_path / "fathom" / "chat-history"
    assert "/votes 5" in history.read_text().splitlines()
    assert history.stat().st_mode & 0o777 == 0o600


def test_every_question_to_the_api_is_put_in_the_same_words(monkeypatch):
    with fathom.load("embedded:fathom-tiny-base", "prompt=plain", "system=Answer in French.") as model:
        asked = []
        real = model._live.generate
        monkeypatch.setattr(
            model._live, "generate", lambda requests, sampling: asked.extend(requests) or real(requests, sampling)
        )
        model.solve("What is 2 + 3?", samples=1, max_tokens=8)
        for samples in (0, 2.5, "4"):
            with pytest.raises(InputError, match="samples: expected a whole number from 1 up"):
                model.solve("What is 2 + 3?", samples=samples)
        with pytest.raises(InputError, match="error: expected a chance from 0 to below 1, got nan"):
            model.solve("What is 2 + 3?", error=float("nan"))
        for question in ("", " ", None):
            for ask in (model.ask, model.solve):
                with pytest.raises(InputError, match=r"the question is empty|None is no question"):
                    ask(question)
    assert [(m.role, m.content) for m in asked[0].messages] == [
        ("system", "Answer in French."),
        ("user", "What is 2 + 3?"),
    ]


def test_the_python_api_in_three_lines():
    with fathom.load() as model:
        result = model.solve("What is 12 + 30?", samples=4, max_tokens=150)
        turn = model.ask("What is 12 + 30?")
    assert len(result.chains) <= 4
    assert result.answer in result.votes or not result.votes
    assert turn.tokens > 0
    with pytest.raises(AttributeError, match="no attribute 'sovle'"):
        _ = fathom.sovle
