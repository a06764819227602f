"""`fathom chat` on a terminal, and in a pipe: answers on stdout, all else on stderr where a program may read stdout.

Lines are edited and remembered by readline, where Python has it. What a conversation is stands in `chat.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from fathom.bill import dollars
from fathom.errors import FathomError, InputError
from fathom.serve.chat import MOST_VOTES, Conversation, Turn
from fathom.serve.solving import agreement, ballot

PROMPT = "› "
BOLD_PROMPT = f"\001\033[1m\002{PROMPT}\001\033[0m\002"
"""readline has to be told what of it takes no room."""

REMEMBERED = 1000
"""Questions in the history file."""

BAR = 24
"""Width of the longest bar of a vote."""

HELP = """\
/votes N     N chains vote on each answer, and drawing stops when the rest can't change it; /votes 1 for one chain
/budget N    N tokens of thinking, then the model is brought to its answer; /budget off
/fold        fold thinking away, or show it (that of the last answer, too)
/memory      take what was said before into account, or ask every question alone
/new         forget what was said
/help        this
/quit        or Ctrl-D; Ctrl-C stops an answer and keeps what came"""


class Terminal:
    """One person's conversation. folded: whether thinking is counted only, not shown."""

    def __init__(self, conversation: Conversation, history: Path | None = None):
        self._conversation = conversation
        self._watched = sys.stdin.isatty() and sys.stdout.isatty()
        self._out = Console(highlight=False, soft_wrap=True)
        self._aside = self._out if self._watched else Console(stderr=True, highlight=False, soft_wrap=True)
        self._history = history
        plain = self._out.no_color or self._out.is_dumb_terminal
        self._prompt = "" if not self._watched else PROMPT if plain else BOLD_PROMPT
        self.folded = not self._watched
        self._commands: dict[str, Callable[[str], str]] = {
            "votes": self._votes,
            "budget": self._budget,
            "fold": self._fold,
            "memory": self._memory,
            "new": self._new,
            "help": lambda rest: HELP,
        }

    def run(self) -> None:
        """Questions and commands, line by line, until the input ends or /quit."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused as a question, not before
        with _line_editing(self._history if self._watched else None):
            if self._watched:
                # Also where a shell started us with the signal ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                self._say(self._greeting())
            while (line := self._read()) is not None and line not in ("/quit", "/exit"):
                try:
                    if line.startswith("/"):
                        self._say(self._command(line))
                    elif line:
                        self._answer(line)
                except FathomError as error:
                    self._say(str(error), "red")

    def _read(self) -> str | None:
        """The next line; None at the end."""
        try:
            return input(self._prompt).strip()
        except EOFError:
            if self._watched:
                self._out.print()
            return None
        except KeyboardInterrupt:
            self._out.print()
            return ""

    def _say(self, text: str, style: str = "dim") -> None:
        self._aside.print(Text(text, style))

    def _greeting(self) -> str:
        hourly = self._conversation.usd_per_hour
        price = "unpriced" if hourly is None else f"{dollars(hourly)} an hour"
        alone = "" if self._conversation.settings.memory else " · every question stands alone (/memory)"
        return f"{self._conversation.served.name} · {price}{alone} · /help"

    # ------------------------------------------------------------------ answers

    def _answer(self, question: str) -> None:
        turns, voted = self._conversation.turns, self._conversation.settings.votes > 1
        before = len(turns)
        try:
            with _interrupts() as interrupted:
                for _ in self._voted(question) if voted else self._streamed(question):
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            came = turns[-1].tokens if len(turns) > before else 0
            self._say(f"\ninterrupted: {came:,} tokens came and are kept")
        if len(turns) == before:
            return
        if voted:
            self._show_vote(turns[-1])
        self._say(figures(turns[-1]))

    def _show_vote(self, turn: Turn) -> None:
        if turn.votes:
            self._say(tally(turn))
        if not self.folded and turn.thinking.strip():
            self._say(turn.thinking.strip())
        self._out.print(Text(turn.answer.strip()))

    def _streamed(self, question: str) -> Iterator[Turn]:
        """Print what comes as it comes; folded thinking is a count that goes away."""
        thought = answered = 0
        with self._counter() as count:
            for turn in self._conversation.ask(question):
                if turn.answer.strip():
                    count(None)
                    if thought and not answered:
                        self._aside.print("\n")
                    new = turn.answer[answered:] if answered else turn.answer.lstrip()
                    self._out.print(Text(new), end="")
                    answered = len(turn.answer)
                elif self.folded:
                    count(f"thinking: {turn.tokens:,} tokens")
                else:
                    self._aside.print(Text(turn.thinking[thought:], "dim"), end="")
                    thought = len(turn.thinking)
                yield turn
        self._out.print()

    def _voted(self, question: str) -> Iterator[Turn]:
        with self._counter() as count:
            for turn in self._conversation.ask(question):
                leading = sorted(turn.votes.items(), key=lambda vote: -vote[1])[:3]
                told = ", ".join(f"{answer} ×{n}" for answer, n in leading)
                count(f"{turn.chains} of at most {self._conversation.settings.votes} chains: {told}")
                yield turn

    @contextlib.contextmanager
    def _counter(self) -> Iterator[Callable[[str | None], None]]:
        """A line that changes in its place while a person watches; None ends it."""
        if not self._aside.is_terminal:
            yield lambda text: None
            return
        with contextlib.ExitStack() as shown:
            status = None

            def count(text: str | None) -> None:
                nonlocal status
                if text is None:
                    shown.close()
                elif status is None:
                    status = shown.enter_context(self._aside.status(Text(text, "dim")))
                else:
                    status.update(Text(text, "dim"))

            yield count

    # ------------------------------------------------------------------ commands

    def _command(self, line: str) -> str:
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            raise InputError(f"/{name}: no such command; /help lists them")
        return self._commands[name](rest.strip())

    def _votes(self, rest: str) -> str:
        self._conversation.settings.votes = votes = _whole("votes", rest, MOST_VOTES)
        return "one chain an answer" if votes == 1 else f"up to {votes} chains vote on each answer"

    def _budget(self, rest: str) -> str:
        self._conversation.settings.budget = budget = None if rest == "off" else _whole("budget", rest)
        return "no budget of thinking" if budget is None else f"at most {budget:,} tokens of thinking"

    def _fold(self, rest: str) -> str:
        self.folded = not self.folded
        if self.folded:
            return "thinking is folded away"
        turns = self._conversation.turns
        return turns[-1].thinking.strip() if turns and turns[-1].thinking.strip() else "thinking is shown"

    def _memory(self, rest: str) -> str:
        settings = self._conversation.settings
        settings.memory = not settings.memory
        return "what was said before counts" if settings.memory else "every question stands alone"

    def _new(self, rest: str) -> str:
        self._conversation.forget()
        return "forgotten"


def tally(turn: Turn) -> str:
    """A bar for each answer, the most frequent first."""
    rows = ballot(turn.votes, turn.chains)
    most = max(count for _, count in rows)
    return "\n".join(f"{count:5}  {'█' * max(1, round(count / most * BAR)):{BAR}}  {answer}" for answer, count in rows)


def figures(turn: Turn) -> str:
    """What an answer took, in one line."""
    thought = f", {turn.thinking_tokens:,} of them thinking" if turn.thinking_tokens else ""
    cut = " (cut by the token limit)" if turn.finish == "length" else ""
    price = "unpriced" if turn.usd is None else dollars(turn.usd)
    speed = f" · {turn.tokens / turn.seconds:,.0f} tokens/s" if turn.seconds else ""
    took = f"{turn.tokens:,} tokens{thought}{cut} · {turn.seconds:.1f} s{speed} · {price}"
    return f"{agreement(turn.consensus)}\n{took}" if turn.consensus else took


def _whole(name: str, text: str, most: int | None = None) -> int:
    if not text.isdecimal() or not 0 < int(text) <= (most or int(text)):
        upto = f" to {most:,}" if most else " up"
        raise InputError(f"/{name}: expected a whole number from 1{upto}, got {text!r}")
    return int(text)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt as ever, and is remembered where some library swallows that."""
    came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def history_file() -> Path:
    """Where lines are remembered, by the XDG convention."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "fathom" / "chat-history"


@contextlib.contextmanager
def _line_editing(history: Path | None) -> Iterator[None]:
    """Arrow keys and remembered lines while it lasts; a file that can't be read or written is done without."""
    try:
        import readline
    except ImportError:
        yield
        return
    if history is None:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(REMEMBERED)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            readline.write_history_file(history)
