"""The `transformers` engine: any Hugging Face causal model, continuous batching, on a CPU or one GPU.

A fixed number of slots decodes together; chains that end give their slots to the next ones, chains
of one prompt share its prefill, and the batch shrinks as the queue runs dry, so hardly a step computes
rows that are finished or padding. Rows stay in order of age, so attention reads them in blocks of
like length. Draws come from a counter-based hash of (seed, request key, sample, position): what else
is in the batch does not matter (but for the rounding of matrix products).
Not a server: `generate` runs one list of requests to its end. Full attention only. Larger models
belong to vLLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from fathom.engines import Completion, Request, TransformersConfig, chain_seed, engine_name
from fathom.engines.text import ModelText
from fathom.errors import InputError
from fathom.records import Sampling
from fathom.weights import tensor_entries

ATTENTION = "fathom_slots"
BLOCK = 64
"""Cache capacity grows by this many positions."""
ROWS = 32
"""Rows of one attention block on a CPU, where reading less pays; on a GPU launching less does, and all are one block."""
SLOTS = {"cpu": 256, "cuda": 2048}
"""Chains that decode together where the recipe doesn't say."""
CANDIDATES = 32
"""Tokens that are sorted first for top-p; where they hold less than top_p of the mass, all are."""
CHANGED_LOGITS = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
"""Entries of a configuration with which logits or scores are more than a matrix product."""
UNREAD = torch.zeros(1, 1, 1, 1)
"""The mask of a prefill, which is causal anyway; transformers builds none of its own where it is given one."""


class SlotCache:
    """Keys and values of S slots; a row of the batch is a slot.

    keys[layer], values[layer]: (S, heads, capacity, head_dim). `aim` says where the next forward pass
    writes. It has what a transformers model asks of its `past_key_values`: `update` and `get_seq_length`.
    """

    def __init__(self, slots: int):
        self.slots, self.capacity = slots, 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows = torch.empty(0)
        self.positions: Tensor | None = None
        self.length = 0

    def aim(self, rows: Tensor, positions: Tensor | None, length: int) -> None:
        """The next pass fills the first `length` positions of `rows` (B,); or, where `positions` (B,) are given,
        writes one entry to each and attends to the first `length` positions of rows 0 .. B-1."""
        if length > self.capacity:
            grown = -(-length // BLOCK) * BLOCK + BLOCK - self.capacity
            self.capacity += grown
            self.keys = [functional.pad(k, (0, 0, 0, grown)) for k in self.keys]
            self.values = [functional.pad(v, (0, 0, 0, grown)) for v in self.values]
        self.rows, self.positions, self.length = rows, positions, length

    def update(self, key: Tensor, value: Tensor, layer: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Store (B, heads, T, head_dim) entries; returns what attention sees: (B, heads, length, head_dim)."""
        if layer == len(self.keys):
            shape = (self.slots, key.shape[1], self.capacity, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        keys, values = self.keys[layer], self.values[layer]
        if self.positions is None:
            keys[self.rows, :, : self.length] = key
            values[self.rows, :, : self.length] = value
            return key, value
        keys[self.rows, :, self.positions] = key[:, :, 0]
        values[self.rows, :, self.positions] = value[:, :, 0]
        return keys[: len(key), :, : self.length], values[: len(key), :, : self.length]

    def copy(self, source: Tensor, target: Tensor | slice, length: int) -> None:
        """Copy `length` positions of the source rows to the target rows."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer: int = 0) -> int:
        """0: positions are given to the model, never counted by it."""
        return 0


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    block_lengths: Sequence[int] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Grouped-query attention without repeating keys: (B, H, T, D) x (B, G, L, D) -> (B, T, H, D).

    Without block_lengths it is a prefill: causal, and the mask is not read. With them it is a step of
    decoding (T = 1): the H / G heads that share keys become the queries, and rows are read in blocks of like
    size, for `block_lengths[i]` positions are enough for the rows of block i.
    """
    batch, heads, _, dim = query.shape
    groups = key.shape[1]
    if block_lengths is None:
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != groups
        )
        return out.transpose(1, 2), None
    query = query.reshape(batch, groups, heads // groups, dim)
    out = torch.empty_like(query)
    size = ROWS if len(block_lengths) > 1 else batch
    for i, seen in enumerate(block_lengths):
        rows = slice(i * size, (i + 1) * size)
        block = mask[rows, :, :, :seen].expand(-1, -1, heads // groups, -1)
        out[rows] = functional.scaled_dot_product_attention(
            query[rows], key[rows, :, :seen], value[rows, :, :seen], attn_mask=block, scale=scaling
        )
    return out.reshape(batch, 1, heads, dim), None


AttentionInterface.register(ATTENTION, attend)
disable_progress_bar()  # of the weights, which are read in a moment


def uniforms(streams: Tensor, positions: Tensor) -> Tensor:
    """One float64 in [0, 1) for each (stream, position): splitmix64 of both, in wrapping int64."""
    x = streams + positions * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return ((x >> 11) & 0x1FFFFFFFFFFFFF).double() / 2**53


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Sample (B,) token ids from (B, V) logits by inverting the nucleus's distribution at `uniform` (B,).

    The nucleus is the smallest set of most probable tokens whose probability reaches top_p.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / sampling.temperature
    total = logits.logsumexp(dim=-1, keepdim=True)
    count = min(CANDIDATES, logits.shape[1])
    top, ids = logits.topk(count, dim=-1)
    mass = (top - total).exp().double().cumsum(dim=-1)
    if count < logits.shape[1] and bool((mass[:, -1] < sampling.top_p).any()):
        top, ids = logits.sort(dim=-1, descending=True)
        mass = (top - total).exp().double().cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
    inside = before < sampling.top_p
    reached = torch.where(inside, mass, 0.0).amax(dim=-1, keepdim=True)
    choice = (mass <= uniform[:, None] * reached).sum(dim=-1, keepdim=True).clamp_(max=mass.shape[1] - 1)
    return ids.gather(1, choice)[:, 0]


class TransformersEngine:
    """See the module docstring. Raises InputError for a directory that holds no causal model, or one it would get wrong.

    logprobs: whether completions carry the log-probability of each token, of the whole distribution at temperature 1.
    """

    def __init__(self, model_dir: Path, config: TransformersConfig, logprobs: bool = False):
        tensor_entries(model_dir)  # names the damaged file, where transformers only says that there is one
        self.name = engine_name(config, model_dir)
        self.text = ModelText(model_dir, self.name)
        cuda = torch.cuda.is_available() if config.device == "auto" else config.device.startswith("cuda")
        self.device = "cuda" if cuda else "cpu"
        dtype = {"auto": torch.bfloat16 if cuda else torch.float32}.get(config.dtype) or getattr(torch, config.dtype)
        try:
            self.model = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
            )
        except Exception as error:
            raise InputError(
                f"{model_dir}: can't be loaded as a causal language model ({str(error).splitlines()[0]})"
            ) from error
        _check_supported(self.model.config, model_dir)
        self.model.to(self.device).eval()
        self.stops = torch.tensor(self.text.stops, device=self.device)
        self.slots = config.slots or SLOTS[self.device]
        self.logprobs = logprobs
        self.version = 0

    @torch.no_grad()
    def push(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take over a policy's weights, by parameter name, from memory; `version` is what the engine serves from now on.

        Raises KeyError for a parameter that is missing.
        """
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they end. Raises InputError where a prompt and `max_tokens` exceed the model's positions."""
        yield from _Batch(self, requests, sampling).run()

    def close(self) -> None:
        """Free the model."""
        del self.model


def _check_supported(config: PretrainedConfig, model_dir: Path) -> None:
    """Refuse what this attention or the bare output layer would silently compute otherwise."""
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        windows.add(f"sliding_window {config.sliding_window}")
    changed = [name for name in CHANGED_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    if windows or changed:
        what = ", ".join(sorted(windows) + changed)
        raise InputError(
            f"{model_dir}: the transformers engine has full attention and plain logits only, not {what}; use kind vllm"
        )


class _Batch:
    """One call of `generate`: the queue, the slots and what was written so far.

    Rows 0 .. len(owner)-1 of every tensor are chains, the oldest first; owner holds (index of the
    request, index of the sample). A chain that ended stays, dead (owner None), until an eighth of the
    rows is dead; then the living move up and new ones follow.
    """

    def __init__(self, engine: TransformersEngine, requests: Sequence[Request], sampling: Sampling):
        self.engine, self.sampling, self.requests = engine, sampling, requests
        positions = getattr(engine.model.config, "max_position_embeddings", None)
        self.prompts = engine.text.prompts(requests, sampling.max_tokens, positions)
        self.queue = deque((r, request.first + s) for r, request in enumerate(requests) for s in range(request.samples))
        self.size = min(engine.slots, len(self.queue))
        self.owner: list[tuple[int, int] | None] = []
        self.cache = SlotCache(self.size)
        self.token = self._ids(self.size)
        self.position = self._ids(self.size)
        """Where `token` stands."""
        self.start = self._ids(self.size)
        self.stream = self._ids(self.size)
        self.written = self._ids(self.size, sampling.max_tokens)
        self.logprobs = torch.zeros(self.written.shape if engine.logprobs else (self.size, 0), device=engine.device)
        self.alive = self._ids(self.size).bool()
        self.columns = self._ids(0)

    def _ids(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=self.engine.device)

    def _tensor(self, values: Sequence) -> Tensor:
        return torch.tensor(values, device=self.engine.device)

    @torch.inference_mode()
    def run(self) -> Iterator[Completion]:
        while self.queue or self.owner:
            living = len(self.owner) - self.owner.count(None)
            rows = self.size if self.queue else len(self.owner)
            if not living or rows - living >= max(1, rows // 8):
                self._compact()
                self._admit(min(self.size - living, len(self.queue)))
                yield from self._retire()
            if any(self.owner):
                self._step()
                yield from self._retire()

    def _admit(self, count: int) -> None:
        """Prefill the next `count` chains of the queue (each prompt once) and draw their first tokens."""
        if not count:
            return
        new = [self.queue.popleft() for _ in range(count)]
        rows = torch.arange(len(self.owner), len(self.owner) + count, device=self.engine.device)
        self.owner += new
        requests = sorted({r for r, _ in new})
        of_row = self._tensor([requests.index(r) for r, _ in new])
        filled = rows[self._tensor([[r for r, _ in new].index(request) for request in requests])]
        prompts = [self.prompts[r] for r in requests]
        lengths = self._tensor([len(prompt) for prompt in prompts])
        longest = max(map(len, prompts))
        ids = self._tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
        self.cache.aim(filled, None, longest)
        hidden = self._forward(ids, torch.arange(longest, device=ids.device).expand_as(ids), UNREAD.to(ids.device))
        logits = self._logits(hidden[torch.arange(len(prompts)), lengths - 1])
        self.cache.copy(filled[of_row], rows, longest)
        self.position[rows] = self.start[rows] = lengths[of_row]
        self.stream[rows] = self._tensor([chain_seed(self.sampling.seed, self.requests[r].key, i) for r, i in new])
        self.alive[rows] = True
        self._write(rows, logits[of_row])

    def _step(self) -> None:
        """One token for every running chain."""
        active = len(self.owner)
        rows = torch.arange(active, device=self.engine.device)
        position = self.position[:active]
        blocks = position.split(ROWS) if position.device.type == "cpu" else [position]
        seen = [int(block.max()) + 1 for block in blocks]
        self.cache.aim(rows, position, max(seen))
        if len(self.columns) < max(seen):
            self.columns = torch.arange(max(seen) + BLOCK, device=self.engine.device)
        unseen = self.columns[: max(seen)] > position[:, None]
        mask = torch.zeros(unseen.shape, device=unseen.device, dtype=self.engine.model.dtype).masked_fill_(
            unseen, float("-inf")
        )
        hidden = self._forward(self.token[:active, None], position[:, None], mask[:, None, None], block_lengths=seen)
        self.position[:active] += self.alive[:active]
        self._write(rows, self._logits(hidden[:, 0]))

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

    def _write(self, rows: Tensor, logits: Tensor) -> None:
        """Draw the next token of these rows; `position` is where it will stand."""
        drawn = self.position[rows] - self.start[rows]
        token = draw(logits, self.sampling, uniforms(self.stream[rows], drawn))
        self.token[rows] = token
        self.written[rows, drawn] = token
        if self.engine.logprobs:
            logits = logits.float()
            self.logprobs[rows, drawn] = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)

    def _retire(self) -> Iterator[Completion]:
        """Yield the chains that ended now; their rows are dead from here on."""
        active = len(self.owner)
        count = self.position[:active] - self.start[:active] + 1
        stopped = torch.isin(self.token[:active], self.engine.stops)
        ended = (stopped | (count >= self.sampling.max_tokens)) & self.alive[:active]
        self.alive[:active] &= ~ended
        for row in ended.nonzero()[:, 0].tolist():
            request, index = self.owner[row]
            ids = self.written[row, : int(count[row])].tolist()
            logprobs = self.logprobs[row, : len(ids)].tolist() if self.engine.logprobs else None
            yield self.engine.text.completion(self.requests[request], index, len(self.prompts[request]), ids, logprobs)
            self.owner[row] = None

    def _compact(self) -> None:
        """Move the living rows up over the dead ones, in order."""
        living = [row for row, owner in enumerate(self.owner) if owner is not None]
        movers = [row for target, row in enumerate(living) if row != target]
        if movers:
            source, target = self._tensor(movers), slice(len(living) - len(movers), len(living))
            for tensor in (self.token, self.position, self.start, self.stream, self.written, self.logprobs, self.alive):
                tensor[target] = tensor[source]
            self.cache.copy(source, target, int(self.position[target].max()))
        self.owner = [self.owner[row] for row in living]
