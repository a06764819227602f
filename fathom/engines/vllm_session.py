"""A session over vLLM's engine: requests join its running batch and leave it at any time.

vLLM schedules; this keeps whose chain is whose, ends thinking that has taken all it may, and turns token ids to text. Not
a second scheduler.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fathom.engines import Request, chain_seed
from fathom.engines.session import Piece, RunningChain
from fathom.engines.text import GrowingText, ModelText
from fathom.errors import WorkError
from fathom.records import Finish, Sampling

WHOLE = "fathom_whole"
"""In a request's `extra_args`: tell of its chain when it ends (see `vllm_scheduler`)."""
LOGPROBS = "fathom_logprobs"
"""In the `kv_transfer_params` of a whole chain's output: log-probabilities of its tokens as float32 in the machine's byte order."""

_IDS = itertools.count()
"""Names of requests, never used twice in a process."""


@dataclass(eq=False)
class _Chain(RunningChain):
    """One chain that runs. name: vLLM's. thinking: None once it was looked at. told: tokens that pieces have brought."""

    name: str = ""
    told: int = 0

    def begin(self, ids: Sequence[int], logprobs: bool) -> None:
        """Count these tokens as written and told; nobody asks for their log-probabilities again."""
        self.ids, self.told = list(ids), len(ids)
        self.logprobs = [float("nan")] * len(ids) if logprobs else []
        for token in ids if self.text else ():
            self.text.grow(token)


class VllmSession:
    """See `fathom/engines/session.py`.

    core: vLLM's LLMEngine. whole: chains come in one piece when they end; `vllm_scheduler` spares the work of telling every token.
    logprobs: whether pieces carry log-probabilities; those of tokens that end the thinking, which nobody drew, are NaN.
    """

    def __init__(self, core: Any, text: ModelText, positions: int, whole: bool, logprobs: bool):
        import vllm.sampling_params

        self._core, self._text, self._positions = core, text, positions
        self._whole, self._logprobs = whole, logprobs
        self._vllm = vllm.sampling_params
        self._chains: dict[str, _Chain] = {}
        self._of_ticket: defaultdict[int, set[_Chain]] = defaultdict(set)

    def add(self, ticket: int, request: Request, sampling: Sampling, thinking: int | None = None) -> None:
        """As the protocol says; chains of one request share their prompt's keys and values."""
        (prompt,) = self._text.prompts([request], sampling.max_tokens, self._positions)
        for index in range(request.first, request.first + request.samples):
            text = None if self._whole else GrowingText(self._text)
            chain = _Chain(ticket, request, index, prompt, sampling, thinking, text)
            chain.begin(request.begun, self._logprobs)
            budget = sampling.max_tokens if thinking is None else max(thinking, 1)  # vLLM writes one token at least
            most = min(budget, sampling.max_tokens)
            key = f"{request.key}/{len(request.begun)}" if request.begun else request.key
            self._submit(chain, most - len(request.begun), chain_seed(sampling.seed, key, index))
            self._of_ticket[ticket].add(chain)

    def _submit(self, chain: _Chain, tokens: int, seed: int) -> None:
        """Let vLLM write at most `tokens` more."""
        chain.name = str(next(_IDS))
        kinds = self._vllm.RequestOutputKind
        params = self._vllm.SamplingParams(
            temperature=chain.sampling.temperature,
            top_p=chain.sampling.top_p,
            max_tokens=tokens,
            seed=seed,
            stop_token_ids=self._text.stops,
            ignore_eos=True,  # the stops are Fathom's own
            detokenize=False,
            logprobs=0 if self._logprobs else None,  # of the sampled token alone
            flat_logprobs=self._logprobs,
            output_kind=kinds.FINAL_ONLY if self._whole else kinds.DELTA,
            extra_args={WHOLE: True} if self._whole else None,
        )
        self._core.add_request(chain.name, {"prompt_token_ids": [*chain.prompt, *chain.ids]}, params)
        self._chains[chain.name] = chain

    def cancel(self, ticket: int) -> None:
        """As the protocol says."""
        names = [chain.name for chain in self._of_ticket.pop(ticket, ())]
        for name in names:
            del self._chains[name]
        self._core.abort_request(names)

    def close(self) -> None:
        """Cancel everything."""
        for ticket in list(self._of_ticket):
            self.cancel(ticket)

    def step(self) -> list[Piece]:
        """As the protocol says. Raises WorkError where vLLM gives a chain up, or itself."""
        try:
            outputs = self._core.step() if self._chains else []
        except Exception as error:
            raise WorkError(f"{self._text.name}: vLLM failed; its own words stand above ({error})") from error
        known = [output for output in outputs if output.request_id in self._chains]
        return [piece for output in known if (piece := self._take(output))]

    def _take(self, output: Any) -> Piece | None:
        """Note what a chain wrote; its piece, where there is something to tell."""
        chain, (news,) = self._chains[output.request_id], output.outputs
        chain.ids += news.token_ids
        if self._logprobs:
            chain.logprobs += _sampled(output)
        finish: Finish | None = None
        if output.finished:
            del self._chains[chain.name]
            if news.finish_reason not in ("stop", "length"):
                self._forget(chain)
                raise WorkError(f"{self._text.name}: vLLM gave a chain up ({news.finish_reason})")
            if not self._goes_on(chain):
                finish = "stop" if chain.ids[-1] in self._text.stops else "length"
                self._forget(chain)
        return self._piece(chain, finish) if finish or not self._whole else None

    def _goes_on(self, chain: _Chain) -> bool:
        """Whether only the budget of its thinking ended a chain; it is then brought to its answer and written on."""
        left = chain.sampling.max_tokens - len(chain.ids)
        if chain.thinking is None or left <= 0 or chain.ids[-1] in self._text.stops:
            return False
        chain.thinking = None
        if self._text.thinks(chain.prompt, chain.ids):
            closing = self._text.closing[:left]
            chain.ids += closing
            chain.logprobs += [float("nan")] * (len(closing) if self._logprobs else 0)
            left -= len(closing)
        if left:
            key = f"{chain.request.key}/answer"  # other draws than those of the first tokens
            self._submit(chain, left, chain_seed(chain.sampling.seed, key, chain.index))
        return left > 0

    def _piece(self, chain: _Chain, finish: Finish | None) -> Piece:
        ids = tuple(chain.ids[chain.told :])
        logprobs = tuple(chain.logprobs[chain.told :]) if self._logprobs else None
        chain.told = len(chain.ids)
        if chain.text is None:
            text = self._text.decode(chain.ids)
        elif finish:
            text = chain.text.end(chain.ids)
        else:
            text = "".join(map(chain.text.grow, ids))
        return Piece(chain.ticket, chain.index, text, len(ids), len(chain.prompt), finish, ids, logprobs)

    def _forget(self, chain: _Chain) -> None:
        of_ticket = self._of_ticket[chain.ticket]
        of_ticket.discard(chain)
        if not of_ticket:
            del self._of_ticket[chain.ticket]

    @property
    def idle(self) -> bool:
        """As the protocol says."""
        return not self._chains

    @property
    def room(self) -> int:
        """As the protocol says, as far as slots go; vLLM may wait for room in the cache."""
        return max(0, self._core.vllm_config.scheduler_config.max_num_seqs - len(self._chains))


def _sampled(output: Any) -> list[float]:
    """Of the tokens that were sampled: a whole chain's bytes, or vLLM's FlatLogprobs, where they come first at each position."""
    if whole := output.kv_transfer_params:
        return array("f", whole[LOGPROBS]).tolist()
    logprobs = output.outputs[0].logprobs
    return [logprobs.logprobs[start] for start in logprobs.start_indices]
