"""AdamW in compact storage: equal to PyTorch's where it is exact, bounded and right on average where it rounds, exact to resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from fathom.train import adamw
from fathom.train.adamw import Moments, Rule, update_
from fathom.train.config import OptimizerConfig, SftConfig
from fathom.train.optimizer import FusedAdamW, MasterAdamW, open_optimizer

BETAS = (0.9, 0.95)
STORAGE = [("float32", "split"), ("float32", "stochastic"), ("int8", "split"), ("int8", "stochastic")]


def model(dtype=torch.bfloat16, seed=0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(
        torch.nn.Linear(48, 70), torch.nn.Tanh(), torch.nn.LayerNorm(70), torch.nn.Linear(70, 9)
    )
    return layers.to(dtype)


def gradients(net: torch.nn.Module, step: int) -> None:
    """Of any value: some large, most small, and a row of zeros; the same for every optimizer."""
    generator = torch.Generator().manual_seed(step)
    for p in net.parameters():
        g = torch.randn(p.shape, generator=generator) * torch.rand(p.shape, generator=generator) ** 6
        g[0] = 0
        p.grad = g.bfloat16().to(p.dtype)


def run(optimizer, net, first, last, limit=1.0):
    for step in range(first, last):
        gradients(net, step)
        optimizer.accumulate()
        optimizer.clip(limit)
        optimizer.step(1e-3 / (1 + step))
        optimizer.drop_gradients()


def fused(net, states="float32", master="float32", decay=0.1):
    return FusedAdamW(net, OptimizerConfig(states=states, master=master), BETAS, decay, seed=3)


def masters(optimizer: FusedAdamW) -> dict[str, torch.Tensor]:
    low = optimizer.moments()
    return {name: adamw.read_weight(w, low.get(f"{name}/low")) for name, w in optimizer.weights().items()}


def test_in_float32_it_is_pytorchs_adamw():
    ours, theirs = model(torch.float32), model(torch.float32)
    run(fused(ours), ours, 0, 30)
    run(MasterAdamW(theirs, BETAS, 0.1), theirs, 0, 30)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-6, atol=2e-7)


def test_what_is_taken_back_lies_where_the_weights_lie():
    """Checkpoints are read to the CPU, and pytorch's fused AdamW doesn't move its state."""
    net = model(torch.float32)
    optimizer = MasterAdamW(net, BETAS, 0.1)
    run(optimizer, net, 0, 1)
    elsewhere = MasterAdamW(model().to("meta"), BETAS, 0.1)
    elsewhere.load(optimizer.weights(), optimizer.moments())
    assert {value.device.type for value in elsewhere.moments().values()} == {"meta"}
    assert elsewhere.moments().keys() == optimizer.moments().keys()


def test_a_split_master_is_the_float32_master_bit_for_bit():
    halves, whole = model(), model().float()
    split, exact = fused(halves, master="split"), fused(whole)
    run(split, halves, 0, 20)
    run(exact, whole, 0, 20)
    for name, master in masters(split).items():
        assert torch.equal(master, exact.weights()[name].flatten()), name
        distance = (halves.get_parameter(name).float().flatten() - master).abs()
        assert (distance <= master.abs() * 2**-8).all(), "the weight is its master rounded to nearest"


def test_the_norm_is_pytorchs_and_is_clipped():
    net, other = model(torch.float32), model(torch.float32)
    gradients(net, 1)
    gradients(other, 1)
    ours = fused(net, "int8").clip(0.5)
    assert ours.shape == () and ours.item() == pytest.approx(
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5).item()
    )
    assert ours > 0.5


def codes(values: torch.Tensor, draws: int) -> torch.Tensor:
    """The same first and second moments stored `draws` times with other random bits, decoded: draws x 2 x values."""
    stored = []
    for draw in range(draws):
        moments = Moments.zero(values, "int8")
        bits = adamw.random_bits(len(values), Rule(0, 0, 0, 0, 1, seed=1, draw=draw))
        adamw.encode(moments, values, values.abs(), (bits >> 16).float() * 2**-16 - 0.5)
        m, v = adamw.decode(moments)
        stored.append(torch.stack([m, v.sqrt()]))
    return torch.stack(stored)


def test_eight_bit_moments_are_off_by_less_than_a_code_and_right_on_average():
    torch.manual_seed(0)
    values = torch.randn(3000) * torch.rand(3000) ** 8
    made = codes(values, 200)
    scale = torch.nn.functional.pad(values.abs(), (0, 72)).view(-1, 256).amax(1).repeat_interleave(256)[:3000]
    for index, (count, truth) in enumerate(((127, values), (255, values.abs()))):
        share = (truth.abs() / scale).sqrt()
        width = scale * ((share + 1 / count) ** 2 - (share - 1 / count).clamp(min=0) ** 2)
        assert ((made[:, index] - truth).abs() <= width + 1e-9).all()
        bias = (made[:, index].mean(0) - truth).abs()
        noise = 5 * width / 200**0.5 + 1.5 * scale / count**2  # what rounding between squares adds, and the least code
        assert (bias <= noise).all()
    assert (made[:, 1] > 0).all(), "a denominator never vanishes"


def test_rounding_of_weights_is_between_neighbours_and_right_on_average():
    torch.manual_seed(0)
    value = torch.randn(500)
    drawn = []
    for draw in range(600):
        weight = torch.zeros(500, dtype=torch.bfloat16)
        adamw.write_weight(weight, None, value, adamw.random_bits(500, Rule(0, 0, 0, 0, 1, draw=draw)))
        drawn.append(weight.float())
    made, step = torch.stack(drawn), 2.0 ** (value.abs().log2().floor() - 7)
    assert ((made - value).abs() < step).all()
    assert ((made.mean(0) - value).abs() <= 5 * 0.5 * step / 600**0.5).all()


def test_steps_too_small_for_bfloat16_add_up():
    """A hundred steps of 1e-4 on a weight of 1, whose next neighbours are 0.0039 and 0.0078 away."""
    for master, expected in (("split", 0.99), ("stochastic", 0.99)):
        net = torch.nn.Linear(64, 64, bias=False).bfloat16()
        torch.nn.init.ones_(net.weight)
        optimizer = fused(net, "float32", master, decay=0.0)
        for _ in range(100):
            net.weight.grad = torch.ones_like(net.weight)
            optimizer.step(1e-4)
        assert masters(optimizer)["weight"].mean().item() == pytest.approx(expected, abs=3e-4)
    plain = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    peer = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        plain.grad = torch.ones_like(plain)
        peer.step()
    assert (plain == 1).all(), "which is what rounding to nearest does"


@pytest.mark.parametrize(("states", "master"), STORAGE)
def test_it_learns_what_float32_learns(states, master):
    """A teacher's outputs by regression: the loss after 80 steps is that of float32 AdamW within a twentieth."""
    x = torch.randn(256, 48, generator=torch.Generator().manual_seed(1))
    y = model(torch.float32, seed=9)(x).detach()

    def final(net, optimizer):
        for _ in range(80):
            loss = (net(x.to(net[0].weight.dtype)).float() - y).square().mean()
            loss.backward()
            optimizer.accumulate()
            optimizer.clip(1.0)
            optimizer.step(6e-3)
            optimizer.drop_gradients()
        return loss.item()

    exact, ours = model(torch.float32), model()
    reference = final(exact, MasterAdamW(exact, BETAS, 0.0))
    assert final(ours, fused(ours, states, master, decay=0.0)) == pytest.approx(reference, rel=0.05)


@pytest.mark.parametrize(("states", "master"), STORAGE)
def test_resume_is_exact(states, master, tmp_path):
    whole, first, second = model(), model(), model(seed=5)
    through = fused(whole, states, master)
    run(through, whole, 0, 6)
    before = fused(first, states, master)
    run(before, first, 0, 3)
    save_file(before.weights(), tmp_path / "w.safetensors")
    save_file(before.moments(), tmp_path / "m.safetensors")
    after = fused(second, states, master)
    after.load(load_file(tmp_path / "w.safetensors"), load_file(tmp_path / "m.safetensors"))
    run(after, second, 3, 6)
    for one, other in ((through.weights(), after.weights()), (through.moments(), after.moments())):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_rounding_differs_by_seed_tensor_and_update():
    bits = [adamw.random_bits(2048, Rule(0, 0, 0, 0, 1, seed=s, tensor=t, draw=d)) for s, t, d in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]  # fmt: skip
    assert len({tuple(some.tolist()) for some in bits}) == 4
    assert all(len(set(some.tolist())) == 2048 for some in bits), "no word serves two elements"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("states", "master"), STORAGE)
def test_a_gradient_that_is_not_finite_changes_nothing(states, master, bad):
    net = model()
    optimizer = fused(net, states, master)
    run(optimizer, net, 0, 2)
    before = {
        k: v.clone() for k, v in (optimizer.weights() | optimizer.moments()).items() if not k.endswith("/updates")
    }
    gradients(net, 7)
    net[0].weight.grad[3, 3] = bad
    assert not optimizer.clip(1.0).isfinite()
    optimizer.step(1e-3)
    after = optimizer.weights() | optimizer.moments()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_forgetting_moments_is_a_fresh_start_with_other_random_bits():
    net = model()
    optimizer = fused(net, "int8", "stochastic")
    run(optimizer, net, 0, 3)
    optimizer.forget_moments()
    state = optimizer.moments()
    assert state.pop("0.weight/updates").tolist() == [0, 3]
    assert not any(tensor.any() for tensor in state.values())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = adamw.philox(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{word.item():08x}" for word in words) == expected


def test_the_default_is_float32_throughout_and_storage_fits_precision():
    assert isinstance(open_optimizer(model(), OptimizerConfig(), BETAS, 0.0, 0), MasterAdamW)
    base = {"model": "m", "examples": "e", "batch_size": 4}
    assert SftConfig(**base).optimizer == OptimizerConfig(states="float32", master="float32")
    SftConfig(**base, precision="bfloat16", optimizer={"states": "int8", "master": "split"})
    SftConfig(**base, optimizer={"states": "int8"})
    for wrong, told in (
        ({"precision": "float32", "optimizer": {"master": "stochastic"}}, "float32 needs none"),
        ({"precision": "bfloat16", "optimizer": {"states": "int8"}}, "goes with master split"),
        ({"optimizer": {"states": "int4"}}, "int8"),
    ):
        with pytest.raises(ValidationError, match=told):
            SftConfig(**base, **wrong)


def test_update_is_a_function_of_its_inputs():
    one, two = (Moments.zero(torch.zeros(700), "int8") for _ in range(2))
    weights = [torch.full((700,), 0.5, dtype=torch.bfloat16) for _ in range(2)]
    grad = torch.randn(700, generator=torch.Generator().manual_seed(0))
    for weight, moments in zip(weights, (one, two), strict=True):
        update_(weight, None, grad, moments, torch.tensor(1.0), Rule(1e-2, *BETAS, 0.0, 1, seed=2))
    assert (
        torch.equal(*weights)
        and torch.equal(one.m, two.m)
        and not torch.equal(weights[0], torch.full_like(weights[0], 0.5))
    )


SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from fathom.train.config import OptimizerConfig
from fathom.train.optimizer import FusedAdamW

rank = 0 if os.fork() else 1  # both processes have torch from one import
store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
STORAGE = OptimizerConfig(states="int8", master="split")

def model(sharded):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(512, 8), torch.nn.LayerNorm(8)).bfloat16()
    for module in net if sharded else ():
        for name, p in list(module.named_parameters()):
            setattr(module, name, torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    return net

def steps(net, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in net.parameters():
            whole = torch.randn(p.shape, generator=generator).bfloat16()
            p.grad = distribute_tensor(whole, mesh, [Shard(0)]) if isinstance(p, DTensor) else whole
        norms.append(optimizer.clip(None))
        optimizer.step(1e-3)

def full(tensors):
    return {name: gathered(t) if isinstance(t, DTensor) else t for name, t in tensors.items()}

def gathered(t):  # full_tensor() knows no int16 under gloo
    parts = [None, None]
    dist.all_gather_object(parts, t.to_local())
    return torch.cat(parts)

norms, (one, two) = [], (model(False), model(True))
alone, shared = (FusedAdamW(net, STORAGE, (0.9, 0.95), 0.1, seed=5) for net in (one, two))
steps(one, alone, 0, 3)
steps(two, shared, 0, 3)
torch.testing.assert_close(torch.stack(norms[:3]), torch.stack(norms[3:]))
for mine, other in ((alone.weights(), shared.weights()), (alone.moments(), shared.moments())):
    other = full(other)
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
again, back = model(True), model(False)
to_shards = FusedAdamW(again, STORAGE, (0.9, 0.95), 0.1, seed=5)
to_one = FusedAdamW(back, STORAGE, (0.9, 0.95), 0.1, seed=5)
to_shards.load(alone.weights(), alone.moments())
to_one.load(full(shared.weights()), full(shared.moments()))
for optimizer, net in ((alone, one), (to_shards, again), (to_one, back)):
    steps(net, optimizer, 3, 5)
finals = [full({**o.weights(), **o.moments()}) for o in (alone, to_shards, to_one)]
assert all(torch.equal(finals[0][name], other[name]) for other in finals[1:] for name in other)
dist.destroy_process_group()
print("equal", flush=True)
if rank == 0:
    os.wait()
"""


def test_shards_are_updated_as_the_whole_and_load_into_one_another(tmp_path):
    """Two processes and one: the same bits after three updates, and after a change of their number."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "sharded.py", tmp_path / "store"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.count("equal") == 2, done.stderr[-3000:]
