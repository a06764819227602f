"""The written-out step equals autograd through Hugging Face's own modules, wherever its activations stay."""

import os
from dataclasses import fields, replace
from itertools import accumulate

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fathom.errors import InputError
from fathom.train.attention import NAME
from fathom.train.attention_kernels import CPU_KERNEL, Cpu, Heads, PerDocument, Spans, difference, window
from fathom.train.batch import Pack
from fathom.train.config import SftConfig
from fathom.train.flat_layer import ALIGNMENT
from fathom.train.float8 import FORWARD, Float8Gemms, float8
from fathom.train.gemms import PlainGemms, TunedGemms
from fathom.train.layer_plan import LayerPlan
from fathom.train.losses import weighted_nll
from fathom.train.model import pack_logprobs
from fathom.train.offload import HostPool, Keeper
from fathom.train.open_step import Work, available_host_bytes, open_step
from fathom.train.trunk import FusedStep, why_not

VOCAB = 132
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
KEPT = [field.name for field in fields(LayerPlan)]
EVERYWHERE = {
    "all kept": [LayerPlan()] * 3,
    "all away": [LayerPlan(*["offload"] * 5)] * 3,
    "all but the input again": [LayerPlan("offload", *["recompute"] * 4)] * 3,
    "one layer each": [LayerPlan(*["offload"] * 5), LayerPlan("keep", *["recompute"] * 4), LayerPlan()],
} | {
    f"{name} {placement}": [LayerPlan(**{name: placement})] * 3
    for name in KEPT
    for placement in ("offload", "recompute")
    if (name, placement) != ("x1", "recompute")
}


def tiny(family: str, dtype: torch.dtype = torch.float64, **changes):
    config_class, model_class = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        family
    ]
    config = config_class(**SIZES | changes)
    config._attn_implementation = NAME
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for p in model.parameters():
            torch.nn.init.normal_(p, float(p.ndim == 1), 0.1)
    return model.to(dtype).train()


def random_pack(*lengths: int, seed: int = 0) -> Pack:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    ids = torch.randint(VOCAB, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    weights[::5] = 0
    weights[[0, *accumulate(lengths[:-1])]] = 0
    predicted = weights.nonzero().squeeze(1)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Pack(ids, positions, lengths, predicted - 1, ids[predicted], weights[predicted])


PACKS = [random_pack(20, 7, 1, 3), random_pack(9, seed=1)]


def by_autograd(model) -> float:
    losses = [weighted_nll(pack_logprobs(model, pack), pack.weights_N.to(model.device)) for pack in PACKS]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses)


def by_step(step: FusedStep) -> float:
    return sum(step.accumulate(pack, pack.weights_N.to(step.model.device)).item() for pack in PACKS)


def by_loss(step: FusedStep) -> float:
    """The same as a loss of any form."""
    return sum(
        step.accumulate_loss(pack, lambda logprobs, some: weighted_nll(logprobs, some.weights_N)).item()
        for pack in PACKS
    )


def assert_same_gradients(model, other, tolerance: float) -> None:
    expected = dict(other.named_parameters())
    for name, p in model.named_parameters():
        assert difference(p.grad, expected[name].grad) < tolerance, name


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-6), (torch.float32, 3e-5)], ids=str)
def test_loss_and_every_gradient_equal_autograd(family, tied, dtype, tolerance):
    plain, fused, other = (tiny(family, dtype, tie_word_embeddings=tied) for _ in range(3))
    expected = by_autograd(plain)
    assert by_step(FusedStep(fused)) == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(fused, plain, tolerance)
    assert by_loss(FusedStep(other)) == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(other, plain, tolerance)


@pytest.mark.parametrize("plans", EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_gradients_do_not_depend_on_where_activations_stay(plans):
    kept, moved = tiny("qwen2"), tiny("qwen2")
    assert by_step(FusedStep(kept)) == by_step(FusedStep(moved, plans))
    for (name, p), q in zip(kept.named_parameters(), moved.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_bfloat16_is_as_near_to_float64_as_the_plain_path():
    exact = tiny("qwen2")
    by_autograd(exact)
    truth = torch.cat([p.grad.flatten() for p in exact.parameters()])
    errors = []
    for run in (by_autograd, lambda model: by_step(FusedStep(model))):
        model = tiny("qwen2", torch.bfloat16)
        run(model)
        errors.append(difference(torch.cat([p.grad.double().flatten() for p in model.parameters()]), truth))
    assert errors[1] < 1.2 * errors[0] < 0.1


def test_a_loss_of_another_form_goes_through_autograd():
    plain, fused = tiny("llama"), tiny("llama")
    step = FusedStep(fused)
    pack = PACKS[0]
    for logprobs in (pack_logprobs(plain, pack), step(pack)):
        (logprobs.exp() * pack.weights_N).sum().backward()
    assert_same_gradients(fused, plain, 2e-6)


def test_without_gradients_nothing_is_kept():
    step = FusedStep(tiny("llama"), [LayerPlan(*["offload"] * 5)] * 3)
    with torch.no_grad():
        hidden = step.hidden(PACKS[0])
    assert not hidden.requires_grad and step.pool.bytes == 0


def test_parameters_stay_the_models_own():
    model, untouched = tiny("qwen2"), tiny("qwen2")
    parameters = dict(model.named_parameters())
    step = FusedStep(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    layer = model.model.layers[0]
    assert torch.equal(step.weights.layers[0].weights.gate_up[48:], layer.mlp.up_proj.weight)
    with torch.no_grad():
        layer.mlp.up_proj.weight.fill_(7)
    assert (step.weights.layers[0].weights.gate_up[48:] == 7).all()


def test_dropped_gradients_are_written_anew_and_others_added_to():
    model = tiny("qwen2")
    step = FusedStep(model)
    by_step(step)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    buffer = step.weights.layers[0].flat_gradient()
    by_step(step)
    assert step.weights.layers[0].flat_gradient() is buffer
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 2 * once[name], rtol=1e-9, atol=1e-12, msg=name)
    for p in model.parameters():
        p.grad = None
    assert step.weights.layers[0].flat_gradient() is None
    by_step(step)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, once[name]), name


def test_padding_between_parameters_is_zero():
    step = FusedStep(tiny("qwen2"))
    by_step(step)
    held = sum(p.numel() for p in step.model.model.layers[0].parameters())
    for flat in (step.weights.layers[0].flat, step.weights.layers[0].flat_gradient()):
        assert len(flat) % ALIGNMENT == 0 and len(flat) > held
        assert flat.count_nonzero() <= held
    assert not step.weights.layers[0].flat_gradient().isnan().any()


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("llama", {"attention_bias": True}, "biases on output projections"),
        ("llama", {"attention_dropout": 0.1}, "attention dropout"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "sliding-window attention",
        ),
    ],
)
def test_other_models_are_refused_with_the_reason(family, changes, reason):
    model = tiny(family, **changes)
    assert why_not(model) == reason
    with pytest.raises(ValueError, match=reason):
        FusedStep(model)


def test_frozen_and_mixed_parameters_are_refused():
    model = tiny("llama")
    model.model.norm.weight.requires_grad = False
    assert why_not(model) == "frozen parameters"
    model = tiny("llama")
    model.lm_head.float()
    assert why_not(model) == "parameters of several dtypes"


def test_a_window_past_a_documents_end_changes_nothing():
    heads, spans = Heads(4, 2, 16, 0.25), Spans.of((70, 13, 1, 129), "cpu")
    qkv = torch.randn(213, heads.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded = PerDocument(Cpu(), repeat=True, rounded=True)
    results = []
    for kernel in (CPU_KERNEL, rounded):
        attended = kernel.forward(qkv, heads, spans)
        grad = torch.arange(attended.out.numel(), dtype=torch.float64).view_as(attended.out).sin()
        results.append([attended.out, *kernel.backward(grad, qkv, attended, heads, spans)])
    for exact, other in zip(*results, strict=True):
        assert difference(other, exact) < 1e-12


@pytest.mark.parametrize("length", [1, 64, 65, 1000, 8192, 8193, 12345, 16384])
def test_windows_are_few_and_little_longer(length):
    assert length <= window(length) <= max(length * 1.0625, length + 63)
    assert len({window(n) for n in range(4097, 8193)}) == 16


def test_offloaded_tensors_come_back_and_the_host_memory_is_reused():
    pool = HostPool(torch.device("cpu"))
    plans = [LayerPlan(gate_up="offload"), LayerPlan(gate_up="recompute"), LayerPlan()]
    for tokens in (6, 4):
        keeper = Keeper(plans, pool, None)
        tensors = [torch.full((tokens, 3), float(layer)) for layer in range(3)]
        for layer, tensor in enumerate(tensors):
            keeper.settle(layer)
            keeper.put(layer, "gate_up", tensor)
            keeper.hold(layer, rstd1=tensor[:, 0])
        taken = [keeper.take(layer) for layer in (2, 1, 0)]
        assert taken[0]["gate_up"] is tensors[2] and "gate_up" not in taken[1]
        assert torch.equal(taken[2]["gate_up"], tensors[0]) and taken[2]["gate_up"] is not tensors[0]
        assert all("rstd1" in kept for kept in taken)
        assert pool.bytes == 6 * 3 * 4


def test_host_memory_is_made_once_for_the_longest_pack_that_is_expected():
    pool = HostPool(torch.device("cpu"), rows=6)
    first = pool.place((0, "x1"), torch.ones(4, 3))
    assert first.shape == (4, 3) and pool.bytes == 6 * 3 * 4
    assert pool.place((0, "x1"), torch.ones(6, 3)).data_ptr() == first.data_ptr()
    assert pool.place((0, "x1"), torch.ones(7, 3)).shape == (7, 3) and pool.bytes == 7 * 3 * 4


def test_float8_gradients_are_near_and_the_rest_is_untouched():
    shape = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": VOCAB}
    exact, eight = (tiny("qwen2", torch.float32, **shape) for _ in range(2))
    loss = by_step(FusedStep(exact))
    assert by_step(FusedStep(eight, gemms=Float8Gemms())) == pytest.approx(loss, rel=0.02)
    flat = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (exact, eight)]
    assert 0.005 < difference(flat[1], flat[0]) < 0.15


def test_float8_scales_by_the_largest_value_and_pads_the_transposed():
    x = torch.tensor([[1.0, -448.0], [0.5, 7.0], [0.0, 2.0]])
    eight = float8(x, FORWARD, plain=True, transposed=True)
    assert eight.scale.item() == 1 and torch.equal(eight.plain.float(), x)
    assert eight.transposed.shape == (2, 16)
    assert torch.equal(eight.transposed.float()[:, :3], x.T) and eight.transposed.float()[:, 3:].count_nonzero() == 0
    zeros = float8(torch.zeros(2, 2), FORWARD, plain=True)
    assert zeros.plain.float().count_nonzero() == 0 and zeros.scale > 0


def test_float8_weight_gradients_accumulate():
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(13, 32, generator=generator), torch.randn(13, 16, generator=generator)
    gemms, target = Float8Gemms(), torch.full((16, 32), torch.nan)
    gemms.grad_weight(gemms.gradient(grad), x, target, new=True)
    once = target.clone()
    gemms.grad_weight(gemms.gradient(grad), x, target, new=False)
    torch.testing.assert_close(target, 2 * once)
    exact = torch.empty(16, 32)
    PlainGemms().grad_weight(grad, x, exact, new=True)
    assert difference(once, exact) < 0.1


def sft_config(**changes) -> SftConfig:
    return SftConfig(model="base", examples="rows", batch_size=1, **changes)


def test_the_plain_path_is_the_default_on_a_cpu():
    for step in ("auto", "plain"):
        assert open_step(tiny("llama"), sft_config(step=step), Work(8, 1), torch.float32) is None


def test_fused_on_demand():
    step = open_step(tiny("llama"), sft_config(step="fused", float8=True), Work(8, 1), torch.float32)
    assert step.plans == [LayerPlan()] * 3 and isinstance(step.gemms, Float8Gemms)


@pytest.mark.parametrize(
    ("wish", "changes", "message"),
    [
        ({"step": "fused"}, {"hidden_act": "gelu"}, r"step: fused .*activation gelu.*set step: plain"),
        ({"float8": True}, {}, "float8: true needs the fused step.*device cpu"),
        ({"step": "plain", "float8": True}, {}, "float8: true needs the fused step.*step: plain is set"),
    ],
)
def test_impossible_wishes_are_refused_in_one_line(wish, changes, message):
    with pytest.raises(InputError, match=message):
        open_step(tiny("llama", **changes), sft_config(**wish), Work(8, 1), torch.float32)


@pytest.mark.parametrize("other", [{"context": 2}, {"adapter": {}}], ids=str)
@pytest.mark.parametrize("wish", [{"float8": True}, {"step": "fused"}], ids=str)
def test_what_runs_the_plain_path_alone_says_so(wish, other):
    with pytest.raises(ValidationError, match="goes with step plain"):
        sft_config(**wish, **other)


def test_available_host_memory_is_a_part_of_the_machines():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_host_bytes() <= total


@pytest.mark.parametrize("way", [0, 1, 2], ids=["whole", "by tokens", "by sums"])
def test_products_in_halves_are_the_products(way, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    grad, x, weight = (torch.randn(shape, generator=generator) for shape in ((11, 14), (11, 6), (14, 6)))
    gemms = TunedGemms()
    monkeypatch.setattr(gemms, "_choose", lambda *measured: way)
    torch.testing.assert_close(gemms.grad_input(grad, weight), grad @ weight)
    target = torch.full((14, 6), torch.nan)
    for times, new in ((1, True), (2, False)):
        gemms.grad_weight(grad, x, target, new)
        torch.testing.assert_close(target, times * grad.T @ x)


def test_a_faster_way_is_chosen_once_for_a_shape(monkeypatch):
    times = iter([1.0, 0.99, 0.9, 1.0, 0.99])
    monkeypatch.setattr("fathom.train.gemms.gpu_seconds", lambda run: next(times))
    monkeypatch.setattr(TunedGemms, "_unknown", lambda self, kind, weight: (kind, *weight.shape) not in self._chosen)
    gemms, weight = TunedGemms(), torch.randn(4, 6)
    assert [gemms._choose("input", weight, [None] * 3) for _ in range(2)] == [2, 2]
    assert gemms._choose("weight", weight, [None] * 2) == 0


def test_the_head_runs_on_all_tokens_where_nearly_all_are_predicted():
    pack = random_pack(40, 30)
    weights = torch.ones(70)
    weights[[0, 40]] = 0
    predicted = weights.nonzero().squeeze(1)
    dense = replace(pack, sources_N=predicted - 1, targets_N=pack.ids_T[predicted], weights_N=weights[predicted])
    plain, fused = tiny("qwen2"), tiny("qwen2")
    loss = weighted_nll(pack_logprobs(plain, dense), dense.weights_N)
    loss.backward()
    assert FusedStep(fused).accumulate(dense, dense.weights_N).item() == pytest.approx(loss.item(), rel=1e-6)
    assert_same_gradients(fused, plain, 2e-6)
