"""The transformers engine's running batch: its queue, its rows, and what a round does to them. A `Session`.

Chains that end give their slots to the next ones, chains of one prompt that start together share its prefill, and the
batch shrinks as the queue runs dry, so hardly a step computes rows that are finished or padding. The cache and its attention
are `slots.py`, the draws `nucleus.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fathom.engines import Request, chain_seed
from fathom.engines.nucleus import draw, uniforms
from fathom.engines.session import Piece, RunningChain
from fathom.engines.slots import LEAST_ROWS, ROWS, SlotCache, padded
from fathom.engines.text import GrowingText
from fathom.records import Finish, Sampling

if TYPE_CHECKING:
    from fathom.engines.hf import TransformersEngine

PREFILL, STREAMED_PREFILL = 1 << 16, 1 << 12
"""Tokens of one prefill, padding included (one prompt may have more). A batch that streams has one prefill a round, so that
those that run don't stand still, and the first of a crowd don't wait for the last."""
UNREAD = torch.zeros(1, 1, 1, 1)
"""The mask of a prefill, which is causal anyway; transformers builds none of its own where it is given one."""


@dataclass(eq=False)
class _Chain(RunningChain):
    """One chain from the queue to its end. forced: what it has to write next, whatever is drawn. start: its prompt and what it had begun."""

    forced: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions that its next step sees."""
        return len(self.prompt) + len(self.ids)


class RunningBatch:
    """See the module docstring. For one thread.

    patient: chains come whole, in a single piece, and new ones start only where an eighth of the slots is free, which
    is the least work per token. Otherwise every token is told as it comes and a free slot is given away at once.

    Rows 0 .. len(rows)-1 of every tensor are chains, the oldest first. A chain that ended stays as a dead row (None) until an
    eighth of them is dead or there is no row for a new one; then the living move up.
    """

    def __init__(self, engine: TransformersEngine, patient: bool = False):
        self.engine, self.patient, self.device = engine, patient, engine.device
        self.slots = engine.slots
        self.most_rows = self.slots + (0 if patient else self.slots // 8)
        self.prefill = PREFILL if patient else STREAMED_PREFILL
        self.least_rows = LEAST_ROWS if self.device == "cpu" else 1
        self.positions = getattr(engine.model.config, "max_position_embeddings", None)
        self.queue: deque[_Chain] = deque()
        self._clear()

    def _clear(self) -> None:
        """Hold nothing: no rows, no memory."""
        self.rows: list[_Chain | None] = []
        self.size = 0
        self.cache = SlotCache()
        self.columns = self._tensor([])
        self._hold(self._tensor([[]] * 5).long(), self._tensor([[]] * 2).double())

    def _hold(self, state: Tensor, sampling: Tensor) -> None:
        """Let the tensors of the rows be these: (5, S) of int64 and (2, S) of float64.

        position is where `token` stands, start where the chain's own tokens begin; alive is 1 or 0.
        """
        self.state, self.sampling = state, sampling
        self.token, self.position, self.start, self.stream, self.alive = state
        self.temperature, self.top_p = sampling

    def _tensor(self, values: Sequence) -> Tensor:
        return torch.tensor(values, device=self.device)

    def add(self, ticket: int, request: Request, sampling: Sampling, thinking: int | None = None) -> None:
        (prompt,) = self.engine.text.prompts([request], sampling.max_tokens, self.positions)
        for index in range(request.first, request.first + request.samples):
            text = None if self.patient else GrowingText(self.engine.text)
            chain = _Chain(ticket, request, index, prompt, sampling, thinking, text, ids=list(request.begun))
            chain.start = [*prompt, *request.begun] if request.begun else prompt
            for token in request.begun if text else ():
                text.grow(token)
            self.queue.append(chain)

    @torch.inference_mode()
    def cancel(self, ticket: int) -> None:
        self.queue = deque(chain for chain in self.queue if chain.ticket != ticket)
        self._end([row for row, chain in enumerate(self.rows) if chain and chain.ticket == ticket])

    def close(self) -> None:
        self.queue.clear()
        self._clear()

    @property
    def living(self) -> int:
        return len(self.rows) - self.rows.count(None)

    @property
    def idle(self) -> bool:
        return not self.queue and not self.living

    @property
    def room(self) -> int:
        return max(0, self.slots - self.living - len(self.queue))

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        living = self.living
        free = self.slots - living
        waits = self.patient and living and free < max(1, self.slots // 8)
        new = 0 if waits else min(free, len(self.queue))
        dead = len(self.rows) - living
        if dead and (dead >= max(1, len(self.rows) // 8) or len(self.rows) + new > self.most_rows):
            self._compact()
        self._reserve(len(self.rows) + new)
        pieces = []
        while new:
            chains = self._next(new)
            new = new - len(chains) if self.patient else 0
            pieces += self._admit(chains)
        if self.living:
            pieces += self._advance()
        if self.idle:
            self._clear()
        return pieces

    def _next(self, count: int) -> list[_Chain]:
        """Take at most `count` chains from the queue, those that fit into one prefill."""
        prompts, longest = set(), 0
        for number, chain in enumerate(islice(self.queue, count)):
            prompts.add(id(chain.start))
            longest = max(longest, len(chain.start))
            if number and len(prompts) * longest > self.prefill:
                count = number
                break
        return [self.queue.popleft() for _ in range(count)]

    def _admit(self, chains: list[_Chain]) -> list[Piece]:
        """Prefill the chains' prompts, each once, and what they had begun, and draw their first tokens."""
        first, past = len(self.rows), len(self.rows) + len(chains)
        self.rows += chains
        filled: dict[int, int] = {}
        for row, chain in enumerate(chains, first):
            filled.setdefault(id(chain.start), row)
        prompts = [self.rows[row].start for row in filled.values()]
        hidden = self._prefill(list(filled.values()), prompts)
        order = {start: number for number, start in enumerate(filled)}
        of_row = [order[id(chain.start)] for chain in chains]
        shared = [row for row, chain in enumerate(chains, first) if filled[id(chain.start)] != row]
        if shared:
            source = self._tensor([filled[id(self.rows[row].start)] for row in shared])
            self.cache.copy(source, self._tensor(shared), max(map(len, prompts)))
        rows = slice(first, past)
        self.start[rows] = self._tensor([len(chain.prompt) for chain in chains])
        self.position[rows] = self._tensor([len(chain.start) for chain in chains])
        self.stream[rows] = self._tensor([chain_seed(c.sampling.seed, c.request.key, c.index) for c in chains])
        self.temperature[rows] = self._tensor([chain.sampling.temperature for chain in chains])
        self.top_p[rows] = self._tensor([chain.sampling.top_p for chain in chains])
        self.alive[rows] = 1
        of_row += of_row[-1:] * (self.least_rows - len(of_row))
        return self._write(rows, self._logits(hidden[self._tensor(of_row)])[: len(chains)])

    def _prefill(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Fill these rows with their prompts; returns the hidden state (B, H) of each prompt's last token."""
        lengths = self._tensor([len(prompt) for prompt in prompts])
        longest = padded(max(map(len, prompts)), self.device)
        ids = self._tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
        self.cache.fill(self._tensor(rows), longest)
        positions = torch.arange(longest, device=self.device).expand_as(ids)
        hidden = self._forward(ids, positions, UNREAD.to(self.device))
        return hidden[torch.arange(len(prompts), device=self.device), lengths - 1]

    def _advance(self) -> list[Piece]:
        """One token for every running chain."""
        active = max(len(self.rows), self.least_rows)
        lengths = [chain.length if chain else 1 for chain in self.rows]
        block = ROWS if self.device == "cpu" else active
        seen = [padded(max(lengths[i : i + block]), self.device) for i in range(0, len(lengths), block)]
        position = self.position[:active]
        self.cache.extend(torch.arange(active, device=self.device), position, max(seen))
        if len(self.columns) < max(seen):
            self.columns = torch.arange(max(seen) + ROWS, device=self.device)
        unseen = self.columns[: max(seen)] > position[:, None]
        mask = torch.zeros(unseen.shape, device=self.device, dtype=self.engine.model.dtype)
        mask.masked_fill_(unseen, float("-inf"))
        hidden = self._forward(self.token[:active, None], position[:, None], mask[:, None, None], block_lengths=seen)
        self.position += self.alive
        rows = slice(0, len(self.rows))
        return self._write(rows, self._logits(hidden[:, 0])[rows])

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, **kwargs: object) -> Tensor:
        """(B, T) ids -> (B, T, hidden); a mask of four dimensions reaches `attend` as it is."""
        return self.engine.model.get_decoder()(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **kwargs,
        ).last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.engine.model.get_output_embeddings()(hidden)

    def _write(self, rows: slice, logits: Tensor) -> list[Piece]:
        """Draw the next token of these rows, tell of it, and end the chains that it ends; `position` is where it will stand."""
        uniform = uniforms(self.stream[rows], self.position[rows] - self.start[rows])
        token = draw(logits, self.temperature[rows], self.top_p[rows], uniform)
        for row, chain in enumerate(self.rows[rows]):
            if chain and chain.thinking is not None and (forced := self._forced(chain)) is not None:
                token[row] = forced
        self.token[rows] = token
        logprobs = None
        if self.engine.logprobs:
            logits = logits.float()
            logprobs = (logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)).tolist()
        return self._take(rows, token.tolist(), logprobs)

    def _forced(self, chain: _Chain) -> int | None:
        """The token that a chain has to write, if there is one: the end of its thinking when the budget for that is spent."""
        if len(chain.ids) == chain.thinking and self.engine.text.thinks(chain.prompt, chain.ids):
            chain.forced = list(self.engine.text.closing)
        return chain.forced.pop(0) if chain.forced else None

    def _take(self, rows: slice, tokens: list[int], logprobs: list[float] | None) -> list[Piece]:
        """Note what these rows wrote, and end the chains that are whole."""
        stops = self.engine.text.stops
        pieces, ended = [], []
        for row, (chain, token) in enumerate(zip(self.rows[rows], tokens, strict=True), rows.start):
            if chain is None:
                continue
            chain.ids.append(token)
            if logprobs is not None:
                chain.logprobs.append(logprobs[row - rows.start])
            finish: Finish | None = None
            if token in stops:
                finish = "stop"
            elif len(chain.ids) >= chain.sampling.max_tokens:
                finish = "length"
            if finish:
                ended.append(row)
            if finish or not self.patient:
                pieces.append(self._piece(chain, finish))
        self._end(ended)
        return pieces

    def _piece(self, chain: _Chain, finish: Finish | None) -> Piece:
        """All of a patient batch's chain, else its last token."""
        new = slice(0 if self.patient else -1, None)
        if chain.text is None:
            text = self.engine.text.decode(chain.ids)
        elif finish:
            text = chain.text.end(chain.ids)
        else:
            text = chain.text.grow(chain.ids[-1])
        ids = tuple(chain.ids[new])
        logprobs = tuple(chain.logprobs[new]) if self.engine.logprobs else None
        return Piece(chain.ticket, chain.index, text, len(ids), len(chain.prompt), finish, ids, logprobs)

    def _end(self, rows: list[int]) -> None:
        """These rows are dead from here on; they stand still at position 0, where they cost least."""
        if rows:
            index = self._tensor(rows)
            self.alive[index] = self.position[index] = 0
            for row in rows:
                self.rows[row] = None

    def _reserve(self, rows: int) -> None:
        """Have memory for so many rows, and for twice as many as before where it grows."""
        if rows <= self.size:
            return
        size = max(rows, min(2 * self.size, self.most_rows), self.least_rows)
        grown = size - self.size
        self._hold(functional.pad(self.state, (0, grown)), functional.pad(self.sampling, (0, grown)))
        self.cache.grow(size)
        self.size = size

    def _compact(self) -> None:
        """Move the living rows up over the dead ones, in order."""
        living = [row for row, chain in enumerate(self.rows) if chain]
        movers = [row for target, row in enumerate(living) if row != target]
        self.rows = [self.rows[row] for row in living]
        longest = max((chain.length for chain in self.rows), default=0)
        if movers:
            source, target = self._tensor(movers), slice(len(living) - len(movers), len(living))
            for tensor in (self.state, self.sampling):
                tensor[:, target] = tensor[:, source]
            self.cache.copy(source, target, longest)
        self.alive[len(living) :] = self.position[len(living) :] = 0
        self.cache.trim(longest)
