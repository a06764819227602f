"""An OpenAI-compatible server over an engine, on this machine alone, which can misbehave to order.

    python -m fathom.serve.endpoint '{"script": "tiny-teacher"}' --model tiny-teacher [--port 8000]

POST /v1/chat/completions (whole answers with usage; n, seed, thinking in `reasoning_content`), GET
/v1/models, and GET /counts: how many calls came and what became of them. The first line it prints is
its address. Not a server for strangers: it listens on the loopback interface and asks for no key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fathom.chunks import digest
from fathom.config import validate
from fathom.engines import Completion, Engine, Request
from fathom.engines.endpoint import ServeConfig
from fathom.engines.scripted import ScriptedEngine
from fathom.errors import InputError
from fathom.records import Message, Sampling
from fathom.serve.faults import FAULTS, Faults
from fathom.serve.practice import SCRIPTS

PARENT_CHECK = 0.5
"""Seconds between two looks at whether the parent lives."""


class Turn(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """What is read of a request; other entries are ignored, as other servers do."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=128)
    seed: int = 0
    stream: Literal[False] = False

    def sampling(self) -> Sampling:
        limit = self.max_completion_tokens or self.max_tokens or Sampling().max_tokens
        return Sampling(self.temperature, self.top_p, limit, self.seed)


class HangUp(Response):
    """Promises a long answer, begins it and hangs up (the server closes a connection whose answer stays incomplete)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


class Endpoint:
    """The routes over one engine. model: the name it answers to."""

    def __init__(self, engine: Engine, model: str, faults: Faults):
        self._engine = engine
        self._model = model
        self._faults = faults
        self._one_at_a_time = asyncio.Lock()
        self._counts: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/counts", self.counts),
            ]
        )

    async def models(self, request: HttpRequest) -> Response:
        listed = {"id": self._model, "object": "model", "owned_by": "fathom"}
        return JSONResponse({"object": "list", "data": [listed]})

    async def counts(self, request: HttpRequest) -> Response:
        """calls by what became of them; requests: different ones; answered_again: whole answers sent before."""
        again = sum(count - 1 for count in self._answered.values())
        fates = {name: self._counts[name] for name in ("answered", "refused", *FAULTS)}
        return JSONResponse({**fates, "requests": len(self._answered), "answered_again": again})

    async def chat(self, request: HttpRequest) -> Response:
        """One call, whose fate is decided before the engine works; a truncated answer is a whole one cut."""
        body = await request.body()
        try:
            asked = ChatRequest.model_validate_json(body)
            if asked.model != self._model:
                raise InputError(f"model: this server has {self._model!r}, not {asked.model!r}")
        except (ValidationError, InputError) as error:
            self._counts["refused"] += 1
            return _error(400, _told(error))
        key = digest(body)
        fate = self._faults.fate(key)
        await asyncio.sleep(fate.seconds)
        self._counts[fate.fault or "answered"] += 1
        if fate.fault == "too_many":
            return _error(429, "too many requests", {"Retry-After": f"{self._faults.config.retry_after:g}"})
        if fate.fault == "error":
            return _error(500, "the server had an error")
        answer = json.dumps(await self._answer(asked, key)).encode()
        if fate.fault == "dropped":
            return HangUp(answer[: len(answer) // 2])
        if fate.fault == "truncated":
            return Response(answer[: len(answer) // 2], media_type="application/json")
        self._answered[key] += 1
        return Response(answer, media_type="application/json")

    async def _answer(self, asked: ChatRequest, key: str) -> dict[str, Any]:
        messages = tuple(Message(turn.role, turn.content) for turn in asked.messages)
        request = Request(digest(*messages), messages, samples=asked.n)
        async with self._one_at_a_time:
            made = await run_in_threadpool(lambda: list(self._engine.generate([request], asked.sampling())))
        completions = sorted(made, key=lambda completion: completion.index)
        prompt, generated = completions[0].prompt_tokens, sum(c.tokens for c in completions)
        return {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": [_choice(completion) for completion in completions],
            "usage": {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated},
        }


def _choice(completion: Completion) -> dict[str, Any]:
    """A completion in OpenAI's form, its thinking (up to `</think>`) in a field of its own."""
    thinking, tag, content = completion.text.rpartition("</think>")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tag:
        message["reasoning_content"] = thinking.removeprefix("<think>")
    return {"index": completion.index, "message": message, "finish_reason": completion.finish}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


def _told(error: ValidationError | InputError) -> str:
    if isinstance(error, InputError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"


def end_with(parent: int) -> None:
    """End this process as soon as it has another parent than this one, from a thread of its own."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("serve", help='what a recipe writes under `serve:`, as JSON: {"script": ..., "faults": {...}}')
    parser.add_argument("--model", required=True, help="the name of the model in requests")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--parent", type=int, help="process id to end with")
    args = parser.parse_args()
    if args.parent:
        end_with(args.parent)
    try:
        config = validate(ServeConfig, json.loads(args.serve))
    except (InputError, ValueError) as error:
        sys.exit(f"serve: {error}")
    engine = ScriptedEngine(args.model, SCRIPTS[config.script])
    endpoint = Endpoint(engine, args.model, Faults(config.faults))
    with socket.create_server(("127.0.0.1", args.port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", flush=True)
        server = uvicorn.Server(uvicorn.Config(endpoint.app(), log_level="critical", access_log=False))
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
