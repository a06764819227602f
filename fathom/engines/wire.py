"""One exchange with an OpenAI-compatible endpoint, and what its outcome means.

It sends once and tells apart: an answer, trouble that may pass (`Failed`), a refusal that would come
again (`InputError`). When to send, whether to send again and who pays is the engine's business.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import httpx

from fathom.engines import Completion, HttpConfig
from fathom.errors import InputError, WorkError
from fathom.records import Usage

PATIENCE = 600.0
"""Seconds that a server may ask for in Retry-After; one that wants more is not waited for."""

MOST_BYTES = 64 << 20
"""An answer longer than this is none; a chain of 100K tokens is half a megabyte."""

GATEWAY = (502, 504)
"""Statuses with which a proxy gives up; what stands behind it may answer, and charge, all the same."""


@dataclass
class Failed(Exception):
    """One exchange went wrong and another may not.

    free: surely not charged. wait: seconds that the server asks for. limited: it said "too many requests".
    """

    why: str
    free: bool
    wait: float | None = None
    limited: bool = False


class Client:
    """An address, and the key for it. Raises InputError when the variable that should hold the key is not set."""

    def __init__(self, config: HttpConfig, url: str):
        self.url = url
        self._model = config.model
        self._key_env = config.key_env
        self._key = _read_key(config.key_env)
        self._seconds = config.timeout_seconds
        self._client = httpx.Client(
            base_url=url,
            # A fresh connection for every exchange: on a kept one, an answer that comes twice would be
            # taken for that of the next call, and a connection just closed by the server for one that broke.
            headers={"Connection": "close", **({"Authorization": f"Bearer {self._key}"} if self._key else {})},
            timeout=httpx.Timeout(config.timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=config.concurrency),
            trust_env=config.serve is None,  # a proxy knows no server of this machine's
        )

    def close(self) -> None:
        self._client.close()

    def json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """The object that an exchange returns. content: as httpx takes it. Raises Failed and InputError."""
        status, headers, data = self._exchange(method, path, self._seconds, MOST_BYTES, **content)
        answer = _parsed(data)
        self._raise_for(status, headers, answer)
        if not isinstance(answer, dict):
            raise Failed("the answer is not a JSON object", free=False)
        if answer.get("error"):
            raise Failed(f"status {status}{self._told(answer)}", free=True)
        return answer

    def download(self, path: str) -> str:
        """A text of any length. Raises Failed and InputError."""
        status, headers, data = self._exchange("GET", path, math.inf, math.inf)
        if status != 200:
            self._raise_for(status, headers, _parsed(data))
        return data.decode("utf-8", errors="replace")

    def _exchange(
        self, method: str, path: str, seconds: float, most: float, **content: Any
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body, read within so many seconds and bytes."""
        deadline = time.monotonic() + seconds
        data = bytearray()
        try:
            with self._client.stream(method, path, **content) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if time.monotonic() > deadline:
                        raise Failed(f"no whole answer within {seconds:g} s", free=False)
                    if len(data) > most:
                        raise Failed(f"the answer is longer than {MOST_BYTES >> 20} MiB", free=False)
                return response.status_code, response.headers, bytes(data)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failed(f"can't connect to {self.url} ({error})", free=True) from None
        except httpx.TimeoutException:
            raise Failed(f"no answer within {self._seconds:g} s", free=False) from None
        except httpx.RequestError as error:
            raise Failed(f"the connection broke ({error})", free=False) from None

    def _raise_for(self, status: int, headers: httpx.Headers, answer: Any) -> None:
        """InputError for a status that the same exchange would meet again, Failed for others but success."""
        if 200 <= status < 300:
            return
        if status in (401, 403):
            variable = f"the key in ${self._key_env}" if self._key else "a call without a key (key_env is not set)"
            raise InputError(f"{self._model}: {self.url} refuses {variable} (status {status})")
        spent = status == 429 and "insufficient_quota" in json.dumps(answer)
        if spent or refused(status):
            raise InputError(f"{self._model}: {self.url} refuses the call (status {status}){self._told(answer)}")
        try:
            wait = _retry_after(headers, self.url)
        except WorkError:
            if status not in GATEWAY:
                raise
            wait = None  # the call may have been paid for, which `Failed` alone tells
        raise Failed(f"status {status}{self._told(answer)}", status not in GATEWAY, wait, limited=status == 429)

    def _told(self, answer: Any) -> str:
        """The server's own words in one line, the key blacked out should it repeat it."""
        error = answer.get("error", answer.get("message")) if isinstance(answer, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        if not isinstance(text, str):
            return ""
        return ": " + " ".join(text.replace(self._key, "***").split() if self._key else text.split())[:300]


def refused(status: int) -> bool:
    """A status that says: not this call, however often it comes."""
    return 300 <= status < 500 and status not in (408, 409, 425, 429)


def read_answer(answer: Any, key: str, index: int) -> tuple[Completion, Usage]:
    """A chain and what it used. Raises Failed when the answer holds no message, or not what it used."""
    try:
        choice = answer["choices"][0]
        text = _chain_text(choice["message"], cut := choice.get("finish_reason") == "length")
        used = answer["usage"]
        cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        usage = Usage(int(used["prompt_tokens"]), int(used["completion_tokens"]), int(cached))
        if not 0 <= usage.cached_tokens <= usage.prompt_tokens or usage.completion_tokens < 0:
            raise ValueError("its usage can't be")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise Failed(f"the answer lacks a message or its usage ({error!r})", free=False) from None
    finish = "length" if cut else "stop"
    return Completion(key, index, text, usage.completion_tokens, finish, usage.prompt_tokens), usage


def _chain_text(message: dict[str, Any], cut: bool) -> str:
    """The thinking, under either of its names, and the answer; a chain cut in its thinking leaves the tag open.

    Half of a surrogate pair, which JSON can write and UTF-8 can't, becomes U+FFFD.
    """
    content = message.get("content") or ""
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(content, str):
        raise TypeError("its content is no text")
    text = content
    if thinking:
        text = f"<think>{thinking}" if cut and not content else f"<think>{thinking}</think>{content}"
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parsed(data: bytes) -> Any:
    """JSON, or None where it is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"engine http: the environment variable {variable} (key_env) is not set")
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"engine http: the environment variable {variable} (key_env) holds no key: not one line of ASCII"
        )
    return key


def _retry_after(headers: httpx.Headers, url: str) -> float | None:
    """Seconds that the server asks to wait, written as a number or as a date. Raises WorkError where that is too long."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            seconds = float(milliseconds) / 1000
        elif (text := headers.get("retry-after")) is not None:
            seconds = _seconds(text)
        else:
            return None
    except ValueError:
        return None
    if not seconds <= PATIENCE:
        raise WorkError(f"{url}: the server asks to wait {seconds:.0f} s, which is longer than {PATIENCE:.0f} s")
    return max(0.0, seconds)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
