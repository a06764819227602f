"""On a CUDA device: the Triton kernels equal their plain PyTorch forms, and the fused step equals the model's modules."""

import copy

import pytest
import torch
from test_fused_step import by_autograd, by_loss, by_step, tiny

from fathom.train import kernels
from fathom.train.attention_kernels import CUDA_KERNELS, Heads, Spans, difference, measure
from fathom.train.float8 import BACKWARD, FORWARD, float8
from fathom.train.layer_plan import LayerPlan
from fathom.train.offload import HostPool
from fathom.train.trunk import FusedStep

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # kernel libraries warn of their own making
]
T, D, HEADS, KEYS, SIZE, INNER, VOCAB = 37, 40, 3, 1, 16, 72, 301


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def norm_backward(x, rstd, weight, grad, residual):
    return [*kernels.rmsnorm_backward_(x, rstd, weight, grad, residual), grad]


def rope(qkv, cos, sin, bias=None):
    kernels.rope_(qkv, bias, cos, sin, HEADS + KEYS)
    return [qkv]


def rope_backward(q, k, v, cos, sin):
    out = torch.empty(T, (HEADS + 2 * KEYS) * SIZE, dtype=q.dtype, device=q.device)
    kernels.rope_backward_((q, k, v), cos, sin, out)
    return [out]


def swiglu_backward(gate_up, grad):
    kernels.swiglu_backward_(gate_up, grad)
    return [gate_up, grad]


def cross_entropy(logits, targets, weights):
    return [kernels.cross_entropy_(logits, targets, weights), logits]


ANGLES = torch.rand(T, SIZE // 2, generator=torch.Generator().manual_seed(0)) * 6
COS, SIN = (torch.cat([f(ANGLES)] * 2, 1).bfloat16() for f in (torch.cos, torch.sin))
CASES = {
    "norm": (lambda x, w: kernels.add_rmsnorm(x, None, w, 1e-6), [drawn(T, D), drawn(D)]),
    "add and norm": (lambda x, y, w: kernels.add_rmsnorm(x, y, w, 1e-6), [drawn(T, D), drawn(T, D) * 2, drawn(D)]),
    "norm backward": (
        norm_backward,
        [drawn(T, D), drawn(T).float().abs(), drawn(D), drawn(T, D) * 3, drawn(T, D) * 2],
    ),
    "rope": (rope, [drawn(T, (HEADS + 2 * KEYS) * SIZE), COS, SIN]),
    "bias and rope": (rope, [drawn(T, (HEADS + 2 * KEYS) * SIZE), COS, SIN, drawn((HEADS + 2 * KEYS) * SIZE)]),
    "rope backward": (rope_backward, [drawn(T, n, SIZE) for n in (HEADS, KEYS, KEYS)] + [COS, SIN]),
    "swiglu": (lambda x: [kernels.swiglu(x)], [drawn(T, 2 * INNER)]),
    "swiglu backward": (swiglu_backward, [drawn(T, 2 * INNER), drawn(T, INNER)]),
    "cross-entropy": (
        cross_entropy,
        [drawn(T, VOCAB) * 3, torch.arange(T) * 7 % VOCAB, torch.rand(T, generator=torch.Generator().manual_seed(1))],
    ),
    "log-probabilities": (
        lambda logits, targets: [kernels.chosen_logprobs(logits, targets), logits],
        [drawn(T, VOCAB) * 3, torch.arange(T) * 7 % VOCAB],
    ),
}


@pytest.mark.parametrize(("function", "arguments"), CASES.values(), ids=CASES.keys())
def test_a_kernel_equals_plain_pytorch(function, arguments):
    wide = [a.float() if a.is_floating_point() else a for a in arguments]
    expected = function(*copy.deepcopy(wide))
    for got, want in zip(function(*(a.cuda() for a in copy.deepcopy(arguments))), expected, strict=True):
        assert difference(got.cpu(), want) < 0.01


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD], ids=str)
def test_float8_rounds_alike(dtype):
    x = drawn(T, D)
    there, here = float8(x.cuda(), dtype, plain=True, transposed=True), float8(x, dtype, plain=True, transposed=True)
    assert there.scale.item() == pytest.approx(here.scale.item())
    for a, b in ((there.plain, here.plain), (there.transposed, here.transposed)):
        assert difference(a.cpu().float(), b.float()) < 0.01


@pytest.mark.parametrize("lengths", [(512,), (200, 130, 65)], ids=str)
def test_attention_kernels_agree(lengths):
    timings = measure(
        CUDA_KERNELS, Heads(4, 2, 64, 0.125), Spans.of(lengths, "cuda"), torch.bfloat16, torch.device("cuda")
    )
    assert all(timing.why in ("", "No module named 'flash_attn'") for timing in timings.values()), timings


def test_pinned_memory_grows_with_the_packs_and_can_be_pinned_again():
    for _ in range(2):
        pool = HostPool(torch.device("cuda"))
        for rows in (1000, 3000, 200_000):
            kept = torch.full((rows, 64), float(rows), device="cuda")
            place = pool.place((0, "gate_up"), kept)
            place.copy_(kept, non_blocking=True)
        assert place.is_pinned() and pool.bytes == kept.nbytes
        torch.cuda.synchronize()
        assert torch.equal(place, kept.cpu())


@pytest.mark.parametrize(
    "plans", [None, [LayerPlan(*["offload"] * 5), LayerPlan("keep", *["recompute"] * 4), LayerPlan()]]
)
def test_the_step_equals_the_models_own_modules(plans):
    exact = tiny("qwen2", head_dim=32)
    by_autograd(exact)
    truth = torch.cat([p.grad.flatten() for p in exact.parameters()])
    errors = []
    for run in (
        by_autograd,
        lambda model: by_step(FusedStep(model, plans)),
        lambda model: by_loss(FusedStep(model, plans)),
    ):
        model = tiny("qwen2", torch.bfloat16, head_dim=32).cuda()
        run(model)
        errors.append(difference(torch.cat([p.grad.cpu().double().flatten() for p in model.parameters()]), truth))
    assert max(errors[1:]) < 1.3 * errors[0] < 0.2
