"""Context parallelism: one pack over several processes, for sequences beyond one device's memory.

Each process holds an equal run of the pack's tokens. Everything but attention works on tokens apart;
around attention, an all-to-all turns "some tokens, all heads" into "all tokens, some heads" and back
(DeepSpeed-Ulysses, arXiv 2309.14509), so the attention in between is the one of `attention.py`, with its
documents. Activations shrink with the number of processes, the exchange is four tensors a layer.
Key heads must divide among the processes. The written-out step (`trunk.py`) doesn't do this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from fathom.train.attention import Documents
from fathom.train.batch import Pack
from fathom.train.losses import token_logprobs


@dataclass(frozen=True)
class Context:
    """This process among those that share a pack. rank, size: within them."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def to_heads(self, x_T_H_d: torch.Tensor) -> torch.Tensor:
        """(own tokens, all heads, d) -> (all tokens, own heads, d)."""
        return _Exchange.apply(x_T_H_d, self.group, self.size, True)

    def to_tokens(self, x_T_H_d: torch.Tensor) -> torch.Tensor:
        """(all tokens, own heads, d) -> (own tokens, all heads, d)."""
        return _Exchange.apply(x_T_H_d, self.group, self.size, False)


class _Exchange(torch.autograd.Function):
    """An all-to-all between tokens and heads; its gradient is the other way round."""

    @staticmethod
    def forward(ctx, x, group, size, to_heads):
        ctx.group, ctx.size, ctx.to_heads = group, size, to_heads
        return _exchange(x, group, size, to_heads)

    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, ctx.group, ctx.size, not ctx.to_heads), None, None, None


def _exchange(x: torch.Tensor, group: dist.ProcessGroup, size: int, to_heads: bool) -> torch.Tensor:
    if to_heads:
        sent = torch.stack(x.chunk(size, dim=1))  # heads of process i, for process i
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received.flatten(0, 1)
    sent = torch.stack(x.chunk(size, dim=0))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(received.unbind(0), dim=1)


class _Gather(torch.autograd.Function):
    """Every process's numbers (as many as `counts` says) in order; each gets the gradient of its own back."""

    @staticmethod
    def forward(ctx, own, context, counts):
        ctx.place = slice(sum(counts[: context.rank]), sum(counts[: context.rank + 1]))
        longest = max(counts)
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=context.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.place], None, None


def context_logprobs(model: PreTrainedModel, pack: Pack, context: Context) -> torch.Tensor:
    """`pack_logprobs`, each process working on its run of the tokens: float32, shape N, whole in every process.

    The stream is filled up to a multiple of the processes with tokens of a document of their own.
    """
    tokens = len(pack.ids_T)
    filled = -tokens % context.size
    each = (tokens + filled) // context.size
    own = slice(context.rank * each, (context.rank + 1) * each)
    ids, positions = (torch.nn.functional.pad(x, (0, filled)) for x in (pack.ids_T, pack.positions_T))
    documents = Documents.of([*pack.lengths, *([filled] if filled else [])], model.device, exchange=context)
    hidden = model.base_model(
        input_ids=ids[None, own].to(model.device),
        position_ids=positions[None, own].to(model.device),
        documents=documents,
        use_cache=False,
    ).last_hidden_state[0]
    holder_N = pack.sources_N // each
    mine_N = holder_N == context.rank
    predicting = hidden.index_select(0, (pack.sources_N[mine_N] - own.start).to(model.device))
    logprobs = token_logprobs(predicting, model.get_output_embeddings().weight, pack.targets_N[mine_N].to(model.device))
    return _Gather.apply(logprobs, context, torch.bincount(holder_N, minlength=context.size).tolist())
