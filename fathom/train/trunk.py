"""A model's decoder layers and head as one explicitly differentiated step: `FusedStep`.

The fast path of the training loop for models of the Llama family. It computes what the model's own
modules compute (`model.py` is the plain path and the reference) on the model's own parameters,
which it lays out flat per layer. It does not load, save or optimize.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from fathom.train import block
from fathom.train.attention_kernels import Autotune, Heads, Spans, bounds
from fathom.train.batch import Pack
from fathom.train.flat_layer import LocalWeights
from fathom.train.float8 import Float8Gemms
from fathom.train.gemms import Gemms, TunedGemms, add_small
from fathom.train.head import logprobs, nll, token_loss
from fathom.train.kernels import add_rmsnorm, rmsnorm_backward_
from fathom.train.layer_plan import LayerPlan
from fathom.train.losses import token_logprobs
from fathom.train.offload import HostPool, Keeper
from fathom.train.sharded import ShardedWeights, is_sharded, why_not_rows

PackT = TypeVar("PackT", bound=Pack)

DENSE_SHARE = 0.97
"""Of the tokens, how many must be predicted for the head to run on all of them."""

FAMILY = ("llama", "qwen2")
"""Values of `model_type` whose layers `block.py` computes."""


def why_not(model: PreTrainedModel) -> str | None:
    """Why the fused step can't run this model; None where it can."""
    config = model.config
    if config.model_type not in FAMILY:
        return f"model type {config.model_type}"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if config.attention_dropout:
        return "attention dropout"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "sliding-window attention"
    if any(p.bias is not None for layer in model.model.layers for p in (layer.self_attn.o_proj, layer.mlp.down_proj)):
        return "biases on output projections"
    if not all(p.requires_grad for p in model.parameters()):
        return "frozen parameters"
    if len({p.dtype for p in model.parameters()}) > 1:
        return "parameters of several dtypes"
    return why_not_rows(model.named_parameters()) if is_sharded(model) else None


class FusedStep:
    """Forward and backward of a whole model on packs.

    plans: one per layer; None keeps everything on the device. rows: tokens of the longest pack that is
    expected. dtype: to compute in where the model is sharded, by default the parameters'. The model must be on its device (and where it isn't
    sharded, in its dtype) before: moving it afterwards breaks the flat layout. Raises ValueError for
    a model that `why_not` refuses.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plans: Sequence[LayerPlan] | None = None,
        gemms: Gemms | None = None,
        dtype: torch.dtype | None = None,
        rows: int = 0,
    ) -> None:
        if reason := why_not(model):
            raise ValueError(f"no fused step for this model: {reason}")
        self.model = model
        layers = model.model.layers
        self._dtype = (dtype or model.dtype) if is_sharded(model) else model.dtype
        self.weights = ShardedWeights(layers, self._dtype) if is_sharded(model) else LocalWeights(layers)
        self.plans = list(plans) if plans is not None else [LayerPlan()] * len(layers)
        self.gemms = gemms or TunedGemms()
        attention = model.model.layers[0].self_attn
        config = model.config
        self.heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, attention.scaling
        )
        self.autotune = Autotune(self.heads, self._dtype, model.device)
        self.pool = HostPool(model.device, rows)
        self._side = torch.cuda.Stream() if model.device.type == "cuda" else None

    def exact(self) -> FusedStep:
        """This step with products in the tensors' own precision: where it isn't in float8 already, the same."""
        other = copy.copy(self)
        other.gemms = TunedGemms() if isinstance(self.gemms, Float8Gemms) else self.gemms
        return other

    def hidden(self, pack: Pack) -> torch.Tensor:
        """The normed hidden state of every token, (T, D), with autograd through layers and embedding."""
        table = self.weights.whole(self.model.get_input_embeddings().weight)
        embedded = embedding(self._move(pack.ids_T), table)
        return _Layers.apply(embedded, self, self._stream(pack))

    def __call__(self, pack: Pack) -> torch.Tensor:
        """log p of every predicted token of the pack: float32, shape N, for losses of any form."""
        predicting = self.hidden(pack).index_select(0, self._move(pack.sources_N))
        head = self.weights.whole(self.model.get_output_embeddings().weight)
        return token_logprobs(predicting, head, self._move(pack.targets_N))

    @torch.no_grad()
    def logprobs(self, pack: Pack) -> torch.Tensor:
        """The same without autograd, rounded as in `accumulate_loss`."""
        predicting = self.hidden(pack).index_select(0, self._move(pack.sources_N))
        head = self.weights.whole(self.model.get_output_embeddings().weight)
        return logprobs(predicting, head, self._move(pack.targets_N))

    def accumulate(self, pack: Pack, weights_N: torch.Tensor) -> torch.Tensor:
        """Add the gradients of -sum(weight * log p) over the pack's predicted tokens; returns that sum, a scalar.

        weights_N: float32.
        """
        sources, targets, weights = map(self._move, (pack.sources_N, pack.targets_N, weights_N.to(torch.float32)))
        hidden = self.hidden(pack)
        parameter = self.model.get_output_embeddings().weight
        head = self.weights.whole(parameter)
        tokens = len(hidden)
        if len(sources) > DENSE_SHARE * tokens:  # cheaper to give the few others no weight than to pick rows
            targets = targets.new_zeros(tokens).index_copy_(0, sources, targets)
            weights = weights.new_zeros(tokens).index_copy_(0, sources, weights)
            total, grad = nll(hidden.detach(), head, targets, weights)
        else:
            total, picked = nll(hidden.detach().index_select(0, sources), head, targets, weights)
            grad = torch.zeros_like(hidden).index_copy_(0, sources, picked)
        self.weights.give(parameter, head)
        del head
        hidden.backward(grad)
        return total

    def accumulate_loss(self, pack: PackT, loss: Callable[[torch.Tensor, PackT], torch.Tensor]) -> torch.Tensor:
        """Add the gradients of a loss that is a sum over predicted tokens, each a function of its own log p; returns it, a scalar.

        loss: of the log-probabilities of some tokens and the pack with these tokens only, on the model's device.
        """
        pack = pack.moved(self._move)
        hidden = self.hidden(pack)
        parameter = self.model.get_output_embeddings().weight
        head = self.weights.whole(parameter)
        predicting = hidden.detach().index_select(0, pack.sources_N)
        total, picked = token_loss(
            predicting, head, pack.targets_N, lambda some, part: loss(some, pack.predicted(part))
        )
        self.weights.give(parameter, head)
        del head
        hidden.backward(torch.zeros_like(hidden).index_copy_(0, pack.sources_N, picked))
        return total

    def _move(self, x: torch.Tensor) -> torch.Tensor:
        """To the model's device; from pinned memory, so that the host doesn't wait for what it asked for before."""
        if x.device == self.model.device or self.model.device.type != "cuda":
            return x.to(self.model.device)
        return x.pin_memory().to(self.model.device, non_blocking=True)

    def _stream(self, pack: Pack) -> block.Stream:
        spans = Spans(pack.lengths, self._move(bounds(pack.lengths)))
        like = torch.empty(0, dtype=self._dtype, device=self.model.device)
        cos, sin = self.model.model.rotary_emb(like, self._move(pack.positions_T)[None])
        eps = self.model.config.rms_norm_eps
        return block.Stream(spans, cos[0], sin[0], self.heads, eps, self.autotune.kernel(spans), self.gemms)

    def forward(self, x_T_D: torch.Tensor, stream: block.Stream, keeper: Keeper | None) -> list[torch.Tensor]:
        """[last stream, its norm, 1 / its root mean square]; what backward needs goes to `keeper`."""
        delta = None
        self.weights.settle()
        for number in range(len(self.plans)):
            self.weights.fetch(number)
            self.weights.fetch(number + 1)
            if keeper is not None:
                keeper.settle(number)
            x_T_D, delta = block.forward(x_T_D, delta, self.weights.weights(number), stream, keeper, number)
        norm = self.weights.whole(self.model.model.norm.weight)
        return list(add_rmsnorm(x_T_D, delta, norm.detach(), stream.eps))

    def backward(
        self, grad_T_D: torch.Tensor, x_T_D: torch.Tensor, rstd_T: torch.Tensor, stream: block.Stream, keeper: Keeper
    ) -> torch.Tensor:
        """Gradient of the embedded tokens; the parameters' gradients go where the optimizer finds them."""
        last = len(self.plans) - 1
        self.weights.fetch(last)
        keeper.prefetch(last)
        grad_T_D = self._norm_backward(grad_T_D.contiguous(), x_T_D, rstd_T)
        for number in range(last, -1, -1):
            kept, weights = keeper.take(number), self.weights.weights(number)
            keeper.prefetch(number - 1)
            self.weights.fetch(number - 1)
            gradients, new = self.weights.gradients(number)
            grad_T_D = block.backward(kept, grad_T_D, weights, gradients, new, stream)
            self.weights.finish(number)
        self.weights.settle()
        return grad_T_D

    def _norm_backward(self, grad_T_D: torch.Tensor, x_T_D: torch.Tensor, rstd_T: torch.Tensor) -> torch.Tensor:
        parameter = self.model.model.norm.weight
        norm = self.weights.whole(parameter)
        grad_T_D, norm_grad = rmsnorm_backward_(x_T_D, rstd_T, norm.detach(), grad_T_D, None)
        new = norm.grad is None
        if new:
            norm.grad = torch.empty_like(norm)
        add_small(norm.grad, norm_grad, new)
        self.weights.give(parameter, norm)
        return grad_T_D


class _Layers(torch.autograd.Function):
    """All layers and the last norm, as autograd sees them: embedded tokens in, normed hidden states out.

    Backward runs once, and overwrites the gradient that it is given.
    """

    @staticmethod
    def forward(ctx, embedded_T_D, step: FusedStep, stream: block.Stream):
        keeper = Keeper(step.plans, step.pool, step._side) if ctx.needs_input_grad[0] else None
        x_T_D, normed, rstd_T = step.forward(embedded_T_D, stream, keeper)
        ctx.kept = (x_T_D, rstd_T, stream, keeper)
        ctx.step = step
        return normed

    @staticmethod
    def backward(ctx, grad_T_D):
        x_T_D, rstd_T, stream, keeper = ctx.kept
        ctx.kept = None
        return ctx.step.backward(grad_T_D, x_T_D, rstd_T, stream, keeper), None, None
