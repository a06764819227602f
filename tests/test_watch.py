"""The figures of a training run: speed and arithmetic by hand, dollars to go, trackers that get what the line says."""

import sys
import types

import pytest

import fathom.train.watch as watch_module
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.physics import ModelShape
from fathom.train.config import TrackingConfig
from fathom.train.watch import Watch, line, open_tracker

SHAPE = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=100)


def row(step):
    return {"step": step, "epoch": 0, "loss": 1.25, "lr": 1e-4, "grad_norm": 0.5, "tokens": 10}


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves two seconds at each look."""
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(watch_module.time, "perf_counter", lambda: next(now))


class Paid(Meter):
    """A meter whose bill grows by a dollar at each look."""

    def __init__(self, path):
        super().__init__(path, 0)
        self.bill = 4.0

    def spent(self):
        self.bill += 1.0
        return self.bill


def test_speed_is_of_the_steps_after_the_first(tmp_path, clock):
    said = []
    watch = Watch(SHAPE, Meter.null(tmp_path), say=said.append)
    assert "tokens/s" not in watch.step(row(1), [500], 3)
    text = watch.step(row(2), [30, 10], 3)
    assert "20 tokens/s" in text
    flops = (30 * SHAPE.training_flops(30) + 10 * SHAPE.training_flops(10)) / 2
    assert watch.values(row(2), 3)["model_flops_per_second"] == pytest.approx(flops)
    assert len(said) == 2 and '"step": 2' in said[1]


def test_dollars_to_go_follow_from_those_so_far(tmp_path, clock):
    watch = Watch(None, Paid(tmp_path))  # 5 dollars at the start
    watch.step(row(1), [10], 10)  # 6 after one step: one dollar a step
    values = watch.values(row(1), 10)
    assert values["usd"] == 7.0
    assert values["usd_to_go"] == pytest.approx(2.0 * 9)


def test_the_line_says_how_much_of_the_device_is_used():
    values = {
        "loss": 0.5,
        "tokens_per_second": 5123.4,
        "model_flops_per_second": 5.5e14,
        "mfu": 0.556,
        "peak_gib": 101.2,
    }
    text = line({**values, "usd": 1.5, "usd_to_go": 20.25})
    assert (
        text == "loss 0.500 · 5,123 tokens/s · 550 TFLOP/s (56% of the device) · 101 GiB · $1.50 so far, $20.25 to go"
    )


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_tracker_gets_every_step(monkeypatch, tmp_path, service):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **given: calls.append(given),
        log=lambda values, step: calls.append((step, values["loss"])),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, service, fake)
    tracker = open_tracker(TrackingConfig(to=service, project="p", run="r"), {"learning_rate": 1e-5})
    watch = Watch(None, Meter.null(tmp_path), tracker)
    watch.step(row(1), [10], 2)
    watch.step(row(2), [10], 2)
    watch.close()
    assert calls == [
        {"project": "p", "name": "r", "config": {"learning_rate": 1e-5}}, (1, 1.25), (2, 1.25), "finished"
    ]  # fmt: skip


def test_tensorboard_files_hold_the_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker(TrackingConfig(to="tensorboard", directory=str(tmp_path)), {})
    watch = Watch(None, Meter.null(tmp_path), tracker)
    watch.step(row(1), [10], 2)
    watch.close()
    events = EventAccumulator(str(tmp_path / "fathom" / "run")).Reload()
    assert [event.value for event in events.Scalars("loss")] == [1.25]


def test_a_tracker_that_is_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="tracking: mlflow is not installed"):
        open_tracker(TrackingConfig(to="mlflow"), {})
