"""A serving process over a script, which starts at once and takes as long to answer as it is asked to; for tests.

    python tests/scripted_server.py STORE

Everything but the model is that of `fathom serve`.
"""

from __future__ import annotations

import random
import sys
import time

from serving import MODEL

from fathom.engines import Request
from fathom.engines.scripted import ScriptedEngine
from fathom.serve.keys import Keys
from fathom.serve.listen import bind
from fathom.serve.process import run
from fathom.serve.served import Served
from fathom.serve.serving import ServerConfig


def slow(request: Request, index: int, seed: int) -> str:
    """Takes the seconds that the prompt names; never answers the same twice."""
    time.sleep(float(request.messages[-1].content))
    return f"answer {random.random()}"


if __name__ == "__main__":
    config = ServerConfig(name=MODEL, store=sys.argv[1], answer_seconds=6.0)
    with bind("127.0.0.1", 0) as listening:
        run(config, ScriptedEngine(MODEL, slow), Served(MODEL), Keys({}), listening)
