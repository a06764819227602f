"""The arithmetic of one AdamW update on one tensor, with compact storage, and the random bits it rounds with.

Computed in float32 throughout. Plain PyTorch here, for a CPU and as the definition; on a CUDA device the
same in one Triton kernel (`adamw_triton.py`), which reads and writes every byte once. It knows no model,
no schedule and no clipping beyond the factor that it is given.

Storage of a value, where it is not float32:

- 8-bit moments in blocks of 256 values. First moment: sign(c) * (c / 127)**2 * scale, scale the largest
  magnitude of the block. Second: its root is (c / 255)**2 * scale, so that it spans 4.8 decades, and
  c >= 1, so that no denominator vanishes. Codes are rounded up or down at random, because to the nearest
  a moment that decays by less than half a code a step would never decay.
- weight, master "stochastic": bfloat16, the float32 rounded up or down with a probability equal to its distance.
- weight, master "split": bfloat16 rounded to nearest, and the 16 bits that are missing as a signed
  difference of the two bit patterns: together exactly the float32 master.

Random bits: Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (place, tensor, update, 0). Element
i of a tensor takes word (i // 256) % 4 of place (i // 1024) * 256 + i % 256: its low half rounds the
weight and its high half both moments. So an update is a function of its inputs alone and resumes
exactly, and where a tensor is sharded in multiples of 1024 elements, on any number of devices.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

BLOCK = 256
"""Values with one scale."""
WORDS = 4
"""Of 32 random bits, from one place of Philox."""
M_CODES, V_CODES = 127.0, 255.0
TINY = 1e-30
"""Scales below count as 0."""


@dataclass(frozen=True)
class Rule:
    """Scalars of one update. step: updates since the moments were zero, from 1.

    seed, tensor, draw: which random bits; start: where in the whole tensor this part of it begins.
    """

    rate: float
    beta1: float
    beta2: float
    decay: float
    step: int
    seed: int = 0
    tensor: int = 0
    draw: int = 0
    start: int = 0
    eps: float = 1e-8

    def scalars(self) -> tuple[float, ...]:
        """(beta1, 1 - beta1, beta2, 1 - beta2, 1 - rate * decay, rate over the first correction, 1 over the second's root, eps)."""
        first, second = 1 - self.beta1**self.step, 1 - self.beta2**self.step
        shrink = 1 - self.rate * self.decay
        return (
            self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, shrink, self.rate / first, second**-0.5, self.eps,
        )  # fmt: skip


@dataclass(frozen=True)
class Moments:
    """Both moments of one tensor, in its shape: float32 without scales, or codes (int8, uint8) with a float32 scale a block."""

    m: torch.Tensor
    v: torch.Tensor
    m_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    @classmethod
    def zero(cls, like: torch.Tensor, states: str, values: int | None = None) -> Moments:
        """For a tensor like this one. states: float32 or int8; values: there are scales for so many, by default for its own."""
        if states == "float32":
            return cls(*(torch.zeros_like(like, dtype=torch.float32) for _ in range(2)))
        blocks = -(-(values or like.numel()) // BLOCK)
        return cls(
            torch.zeros_like(like, dtype=torch.int8),
            torch.zeros_like(like, dtype=torch.uint8),
            *(torch.zeros(blocks, dtype=torch.float32, device=like.device) for _ in range(2)),
        )

    def named(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}


@cache
def _triton() -> ModuleType:
    return importlib.import_module("fathom.train.adamw_triton")


@torch.no_grad()
def update_(
    weight: torch.Tensor,
    low: torch.Tensor | None,
    grad: torch.Tensor,
    moments: Moments,
    factor: torch.Tensor,
    rule: Rule,
) -> None:
    """Update `weight` (float32, or bfloat16), its missing bits `low` (int16; None: stochastic) and `moments` in place.

    All contiguous and of one size. factor: a float32 scalar tensor that multiplies the gradient;
    where it is not finite nothing changes.
    """
    if weight.is_cuda:
        _triton().update_(weight, low, grad, moments, factor, rule)
        return
    if not factor.isfinite():
        return
    beta1, rest1, beta2, rest2, shrink, size, root2, eps = rule.scalars()
    bits = random_bits(weight.numel(), rule)
    chance = (bits >> 16).float() * 2**-16 - 0.5
    m, v = decode(moments)
    g = grad.flatten().float() * factor
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    root = _root(v)
    w = read_weight(weight, low)
    w = shrink * w - size * m / (root * root2 + eps)
    write_weight(weight, low, w, bits)
    if moments.m_scale is None:
        moments.m.view(-1).copy_(m)
        moments.v.view(-1).copy_(v)
    else:
        encode(moments, m, root, chance)


def read_weight(weight: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
    """The float32 master of a weight, flat: itself where it has no missing bits."""
    flat = weight.detach().flatten()
    if low is None:
        return flat.float()
    return ((flat.view(torch.int16).int() << 16) + low.view(-1).int()).view(torch.float32)


def write_weight(weight: torch.Tensor, low: torch.Tensor | None, master: torch.Tensor, bits: torch.Tensor) -> None:
    """Store a flat float32 master: as it is, split, or rounded with the low halves of `bits`."""
    flat = weight.detach().view(-1)
    if flat.dtype == torch.float32:
        flat.copy_(master)
        return
    pattern = master.view(torch.int32)
    if low is None:
        high = (pattern + (bits & 0xFFFF).int()) >> 16
    else:
        high = (pattern + 0x8000) >> 16
        low.view(-1).copy_((pattern - (high << 16)).to(torch.int16))
    flat.view(torch.int16).copy_(high.to(torch.int16))


def decode(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Both moments in float32, flat."""
    m, v = moments.m.view(-1).float(), moments.v.view(-1).float()
    if moments.m_scale is None:
        return m, v
    root = v * v * _spread(moments.v_scale * (1 / V_CODES**2), len(v))
    return m * m.abs() * _spread(moments.m_scale * (1 / M_CODES**2), len(m)), root * root


def encode(moments: Moments, m: torch.Tensor, root: torch.Tensor, chance: torch.Tensor) -> None:
    """Store flat float32 values; chance: of each, uniform in [-0.5, 0.5), what is added before rounding to the nearest code."""
    m_scale, v_scale = _block_maximum(m.abs()), _block_maximum(root)
    m_code = _root(m.abs() * _spread(_over(M_CODES**2, m_scale), len(m))) + chance
    v_code = _root(root * _spread(_over(V_CODES**2, v_scale), len(m))) + chance
    m_code = m_code.clamp_(max=M_CODES).round_()
    moments.m.view(-1).copy_(torch.where(m < 0, -m_code, m_code))
    moments.v.view(-1).copy_(v_code.clamp_(1, V_CODES).round_())
    moments.m_scale[: len(m_scale)].copy_(m_scale)
    moments.v_scale[: len(v_scale)].copy_(v_scale)


def _root(values: torch.Tensor) -> torch.Tensor:
    """Rounded correctly, as every IEEE machine does; PyTorch's float32 root on a CPU is off by a bit at times."""
    return values.double().sqrt().float()


def _over(codes: float, scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > TINY, torch.full_like(scale, codes) / scale, 0.0)  # number / tensor is not one division


def _block_maximum(values: torch.Tensor) -> torch.Tensor:
    missing = -len(values) % BLOCK
    return torch.nn.functional.pad(values, (0, missing)).view(-1, BLOCK).amax(1)


def _spread(scales: torch.Tensor, count: int) -> torch.Tensor:
    return scales.repeat_interleave(BLOCK)[:count]


def random_bits(count: int, rule: Rule) -> torch.Tensor:
    """32 bits for each of `count` elements, as int64 in [0, 2**32)."""
    groups = -(-count // (BLOCK * WORDS))
    places = rule.start // WORDS + torch.arange(groups * BLOCK)
    words = philox((places, *(torch.full_like(places, n) for n in (rule.tensor, rule.draw, 0))), rule.seed)
    return torch.stack([word.view(groups, BLOCK) for word in words], 1).flatten()[:count]


def philox(counter: tuple[torch.Tensor, ...], seed: int) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10: four words for each counter of four words; int64 tensors that hold 32 bits each."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits, wrapped in int64: both halves are right
        c0, c1, c2, c3 = _high(odd) ^ c1 ^ k0, odd & 0xFFFFFFFF, _high(even) ^ c3 ^ k1, even & 0xFFFFFFFF
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c0, c1, c2, c3


def _high(value: torch.Tensor) -> torch.Tensor:
    return value >> 32 & 0xFFFFFFFF


def square_sums(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of the squares of all elements in float32 with a fixed order, a 0-dim tensor on their device; nothing waits for it."""
    if tensors[0].is_cuda:
        return _triton().square_sums(tensors)
    return torch.stack([tensor.detach().float().square().sum() for tensor in tensors]).sum()
