"""The memory plan: sums by hand, what it promises at the published sizes, and that it refuses with advice that holds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fathom.errors import InputError
from fathom.physics import GIB, KNOWN_SHAPES, ModelShape
from fathom.train.config import OptimizerConfig
from fathom.train.layer_plan import LayerPlan
from fathom.train.memory import Room, Work, peak_bytes, plan_memory, stored_bytes

B14 = KNOWN_SHAPES["Qwen/Qwen2.5-14B"]
B32 = KNOWN_SHAPES["Qwen/Qwen2.5-32B-Instruct"]
H200 = Room(device_bytes=139.8 * GIB, host_bytes=100 * GIB)
SMALL = OptimizerConfig(states="int8", master="stochastic")
SPLIT = OptimizerConfig(states="int8", master="split")
EXACT = OptimizerConfig(states="float32", master="float32")


def test_activations_of_the_measured_model_by_hand():
    """79 GB where everything is kept: the figure that was measured for 14.8B and 16,384 tokens."""
    sizes = Work(B14, 16384, 1, 1, 4, 2).tensor_bytes()
    assert sizes["gate_up"] == 16384 * 2 * 2 * 13824
    assert sizes["qkv"] == 16384 * 2 * (5120 + 2 * 1024)
    assert sizes["attn"] == 16384 * (2 * 5120 + 4 * 40)
    assert 48 * sum(sizes.values()) == pytest.approx(79e9, rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "weight_bytes", "expected"),
    [(SMALL, 2, 6.03), (SPLIT, 2, 8.03), (EXACT, 2, 18), (EXACT, 4, 16), (OptimizerConfig(master="split"), 2, 14)],
)
def test_bytes_per_parameter(optimizer, weight_bytes, expected):
    assert sum(stored_bytes(optimizer, weight_bytes)) == pytest.approx(expected, abs=0.01)


def test_peak_by_hand_of_two_layers():
    """Two layers, one offloaded in part; the loss is where most is alive."""
    shape = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=1000)
    work = Work(shape, tokens=100, packs=2, devices=1, state_bytes=4, gradient_bytes=2)
    sizes = work.tensor_bytes()
    keep = dict.fromkeys(sizes, "keep")
    moved = {**keep, "gate_up": "offload"}
    states = 6 * shape.parameters
    every = sum(sizes.values()) + 8 * 100
    loss = 1.25 * GIB + 4 * 100 * 64
    assert peak_bytes(work, [keep, keep]) == states + 2 * every + loss
    assert peak_bytes(work, [moved, keep]) == states + 2 * every - sizes["gate_up"] + sizes["gate_up"] + loss


@pytest.mark.parametrize(("packs", "offloaded", "measured_gib"), [(1, 6, 126.98), (2, 36, 127.64)])
def test_the_peak_is_the_measured_one(packs, offloaded, measured_gib):
    """benchmarks/block_gpu.py on one H200: 14.8B, 16,384 tokens, gate_up of some layers in host memory, moments of one byte."""
    work = Work(B14, 16384, packs, 1, state_bytes=4, gradient_bytes=2)
    keep = dict.fromkeys(work.tensor_bytes(), "keep")
    plan = [keep | {"gate_up": "offload"}] * offloaded + [keep] * (48 - offloaded)
    assert peak_bytes(work, plan) / GIB == pytest.approx(measured_gib, rel=0.01)


def test_14b_on_one_h200_needs_about_30_gb_of_offload_and_nothing_twice():
    plan = plan_memory(B14, 16384, SMALL, H200, packs=16)
    assert 15e9 < plan.offload_bytes < 35e9
    assert plan.seconds == 0
    assert plan.peak_bytes < H200.device_bytes
    assert all("recompute" not in vars(layer).values() for layer in plan.per_layer)
    assert plan.per_layer[-1] == LayerPlan(), "the last layers' tensors are needed at once"
    assert re.fullmatch(r"offloads \d+ GiB a pass \(.*gate_up of \d+ of 48 layers\)", plan.notes[0])


def test_one_pack_a_step_leaves_room_for_nearly_everything():
    """Gradients appear as activations go, so the peak has none of them."""
    assert plan_memory(B14, 16384, SMALL, H200, packs=1).offload_bytes < 3e9


def test_32b_on_one_is_refused_with_advice_that_holds():
    with pytest.raises(InputError, match=r"2 devices with sharding.*LoRA") as error:
        plan_memory(B32, 16384, SMALL, H200)
    assert "\n" not in str(error.value)
    assert plan_memory(B32, 16384, SMALL, H200, devices=2, packs=8).peak_bytes < H200.device_bytes


def test_exact_states_of_14b_are_refused_and_8_bit_advised():
    with pytest.raises(InputError, match=r"states: int8, master: stochastic"):
        plan_memory(B14, 16384, EXACT, H200)


def test_a_sequence_too_long_is_told_the_length_that_fits():
    with pytest.raises(InputError, match=r"max_length and pack_tokens of (\d+)") as error:
        plan_memory(B14, 131072, SMALL, H200, packs=2)
    length = int(re.search(r"pack_tokens of (\d+)", str(error.value))[1])
    plan_memory(B14, length, SMALL, H200, packs=2)
    with pytest.raises(InputError):
        plan_memory(B14, 2 * length, SMALL, H200, packs=2)


def test_more_tokens_never_need_less():
    plans = [plan_memory(B14, tokens, SMALL, H200, packs=4) for tokens in range(4096, 28673, 4096)]
    costs = [(plan.offload_bytes, plan.seconds) for plan in plans]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    everything_kept = [plan.peak_bytes for plan in plans if not plan.offload_bytes]
    assert everything_kept == sorted(everything_kept)


@pytest.mark.parametrize("gib", [100, 110, 120, 130, 139])
def test_a_plan_fits_or_is_refused(gib):
    room = Room(gib * GIB, 100 * GIB)
    try:
        plan = plan_memory(B14, 16384, SMALL, room, packs=16)
    except InputError:
        assert gib < 110
    else:
        assert plan.peak_bytes < room.device_bytes and plan.host_bytes <= room.host_bytes


def test_without_host_memory_it_recomputes():
    plan = plan_memory(B14, 16384, SMALL, Room(139.8 * GIB, 0), packs=16)
    assert plan.host_bytes == 0 and plan.seconds > 0.05
    assert plan.per_layer[0].gate_up == "recompute"
    assert all(layer.x1 == layer.attn == "keep" for layer in plan.per_layer)


def test_planning_needs_no_torch():
    code = "import sys, fathom.train.memory; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
