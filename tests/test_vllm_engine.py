"""The vllm engine as far as a machine without vLLM can see it: settings, the missing package, what it asks of vLLM.

`FakeCore` has the face of vLLM 0.24's LLMEngine. What vLLM itself computes, and that it takes weights over, is checked
where it is installed: by test_vllm_installed.py, and on a GPU by `benchmarks/rollout_gpu.py --smoke`.
"""

import importlib
import os
import pickle
import sys
from array import array
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import write_model

from fathom.config import key_values, validate
from fathom.engines import Request, VllmConfig, chain_seed, open_engine
from fathom.engines.vllm_session import LOGPROBS, WHOLE
from fathom.engines.vllm_worker import as_handles
from fathom.errors import InputError, WorkError
from fathom.records import Message, Sampling
from fathom.serve.live import Live
from fathom.tokens import load_tokenizer, render_prompt, stop_ids

SAMPLING = Sampling(0.6, 0.95, 16, seed=3)
REQUESTS = [Request("a", (Message("user", "2+2"),), samples=2, first=5), Request("b", (Message("user", "3+3"),))]


def test_what_only_says_how_work_is_done_stays_out_of_the_key():
    settings = VllmConfig(
        tensor_parallel=4, gpu_memory_utilization=0.8, max_model_len=4096, kv_cache_dtype="fp8", gpus=[1], sleep=True
    )
    assert key_values(settings, str) == {"kind": "vllm", "kv_cache_dtype": "fp8", "options": {}}


@pytest.mark.parametrize(
    "wrong", [{"tensor_parallel": 0}, {"gpu_memory_utilization": 1.5}, {"max_model_len": 0}, {"gpus": []}, {"tp": 2}]
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        validate(VllmConfig, wrong)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"^engine vllm: vLLM is not installed.*pip install 'fathom\[vllm\]'"):
        open_engine(VllmConfig(), write_model(tmp_path / "model"))


def test_it_needs_a_model():
    with pytest.raises(InputError, match="'vllm' needs a model"):
        open_engine(VllmConfig())


@dataclass
class FakeParams:
    """What vllm.SamplingParams takes of us; an unknown keyword fails as it does there."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool
    logprobs: int | None
    flat_logprobs: bool
    output_kind: str
    extra_args: dict | None


class FakeCore:
    """vLLM's LLMEngine: every step adds the prompt's last id to each chain; the third that was asked for stops at its second."""

    def __init__(self, positions: int):
        self.model_config = SimpleNamespace(max_model_len=positions)
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.running: dict[str, tuple[dict, FakeParams, list[int]]] = {}
        self.asked: list[tuple[dict, FakeParams]] = []
        self.resets: list[bool] = []

    def add_request(self, name, prompt, params):
        self.asked.append((prompt, params))
        self.running[name] = (prompt, params, [])

    def abort_request(self, names):
        for name in names:
            del self.running[name]

    def reset_prefix_cache(self, reset_running_requests):
        self.resets.append(reset_running_requests)

    def step(self):
        outputs = []
        for name, (prompt, params, ids) in list(self.running.items()):
            stop = len(ids) == 1 and [asked is params for _, asked in self.asked].index(True) == 2
            ids.append(params.stop_token_ids[0] if stop else prompt["prompt_token_ids"][-1])
            finished = bool(stop) or len(ids) == params.max_tokens
            if finished:
                del self.running[name]
            elif params.output_kind == "final":
                continue
            whole = bool(params.extra_args)
            assert whole == (params.output_kind == "final")
            new = ids if whole else ids[-1:]
            flat = SimpleNamespace(logprobs=[-0.25] * 2 * len(new), start_indices=range(0, 2 * len(new), 2))
            held = {LOGPROBS: array("f", [-0.5] * len(ids)).tobytes()} if whole and params.flat_logprobs else None
            reason = None if not finished else "stop" if stop else "length"
            news = SimpleNamespace(
                token_ids=list(new), logprobs=flat if params.flat_logprobs else None, finish_reason=reason
            )
            outputs.append(SimpleNamespace(request_id=name, outputs=[news], finished=finished, kv_transfer_params=held))
        return outputs


@dataclass
class FakeLLM:
    """vllm.LLM's face."""

    model: str
    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_model_len: int | None
    kv_cache_dtype: str
    enable_sleep_mode: bool
    logprobs_mode: str
    skip_tokenizer_init: bool
    worker_extension_cls: str
    scheduler_cls: str
    seed: int
    calls: list = field(default_factory=list)

    def __post_init__(self):
        self.llm_engine = FakeCore(self.max_model_len or 4096)
        self.started_with = {k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "VLLM_USE_V2_MODEL_RUNNER")}
        self.served = 0

    def collective_rpc(self, method, args=()):
        self.calls.append(method)
        if method == "fathom_receive":
            self.weights, self.served = pickle.loads(args[0]), args[1]
        return [self.served, self.served]

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self):
        self.calls.append("wake")


@pytest.fixture
def model(tmp_path, monkeypatch):
    vllm, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.LLM, vllm.sampling_params = FakeLLM, params
    params.SamplingParams = FakeParams
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final", DELTA="delta")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return write_model(tmp_path / "model")


def test_prompts_seeds_and_stops_are_fathoms_own(model):
    engine = open_engine(VllmConfig(), model)
    chains = {(c.key, c.index): c for c in engine.generate(REQUESTS, SAMPLING)}
    tokenizer = load_tokenizer(model)
    prompt = render_prompt(tokenizer, REQUESTS[0].messages)
    asked = engine._llm.llm_engine.asked
    assert [p["prompt_token_ids"] for p, _ in asked[:2]] == [prompt, prompt]
    assert [p.seed for _, p in asked] == [chain_seed(3, "a", 5), chain_seed(3, "a", 6), chain_seed(3, "b", 0)]
    assert all(p.stop_token_ids == stop_ids(tokenizer, model) and p.ignore_eos for _, p in asked)
    assert {p.output_kind for _, p in asked} == {"final"}
    assert sorted(chains) == [("a", 5), ("a", 6), ("b", 0)]
    cut, stopped = (next(c for c in chains.values() if c.finish == finish) for finish in ("length", "stop"))
    assert (cut.tokens, len(cut.token_ids), cut.logprobs) == (16, 16, None)
    assert (stopped.tokens, stopped.text) == (2, tokenizer.decode(prompt[-1:]))
    assert cut.prompt_tokens == len(prompt)


def test_log_probabilities_are_of_the_sampled_tokens(model):
    from fathom.engines.vllm import VllmEngine

    engine = VllmEngine(model, VllmConfig(), logprobs=True)
    (chain,) = engine.generate([REQUESTS[1]], Sampling(1.0, 1.0, 3))
    assert chain.logprobs == (-0.5,) * 3
    session = engine.session()
    session.add(1, REQUESTS[1], Sampling(1.0, 1.0, 3))
    assert session.step()[0].logprobs == (-0.25,)
    assert [params.logprobs for _, params in engine._llm.llm_engine.asked] == [0, 0]


def test_a_session_gives_pieces_and_lets_requests_go(model):
    engine = open_engine(VllmConfig(), model)
    session = engine.session()
    session.add(1, REQUESTS[0], SAMPLING)
    session.add(2, REQUESTS[1], SAMPLING)
    assert session.room == 1
    first = session.step()
    assert [(p.ticket, p.tokens, p.finish) for p in first] == [(1, 1, None), (1, 1, None), (2, 1, None)]
    session.cancel(1)
    session.cancel(7)
    assert len(engine._llm.llm_engine.running) == 1
    rest = []
    while not session.idle:
        rest += session.step()
    assert {p.ticket for p in rest} == {2}
    assert rest[-1].finish in ("stop", "length")
    assert session.step() == []


def test_thinking_that_took_all_it_may_is_brought_to_its_answer(model):
    engine = open_engine(VllmConfig(), model)
    session = engine.session()
    session.add(1, REQUESTS[1], SAMPLING, thinking=3)  # its prompt opens the thinking
    pieces = []
    while not session.idle:
        pieces += session.step()
    closing, asked = engine.text.closing, engine._llm.llm_engine.asked
    assert [params.max_tokens for _, params in asked] == [3, 16 - 3 - len(closing)]
    ids = [i for piece in pieces for i in piece.token_ids]
    assert ids[3 : 3 + len(closing)] == closing
    assert asked[1][0]["prompt_token_ids"] == asked[0][0]["prompt_token_ids"] + ids[: 3 + len(closing)]
    assert asked[1][1].seed != asked[0][1].seed
    assert "".join(piece.text for piece in pieces) == engine.text.decode(ids)
    assert [piece.finish for piece in pieces if piece.finish] == ["length"]
    assert len(ids) == 16


def test_a_dead_process_has_no_new_session_and_no_budget_for_thinking_is_one_token(model):
    engine = open_engine(VllmConfig(), model)
    engine.session().add(1, REQUESTS[1], SAMPLING, thinking=0)
    assert [params.max_tokens for _, params in engine._llm.llm_engine.asked] == [1]

    def ensure_alive():
        raise RuntimeError("EngineCore encountered an issue")

    assert engine.alive
    engine._core.engine_core.ensure_alive = ensure_alive
    assert not engine.alive
    with pytest.raises(WorkError, match="vLLM's process has ended"):
        engine.session()


def test_a_chain_that_vllm_gives_up_is_one_line_and_the_others_are_dropped(model):
    engine = open_engine(VllmConfig(), model)
    core = engine._llm.llm_engine
    real = core.step

    def step():
        outputs = real()
        for output in outputs:
            if output.finished:
                output.outputs[0].finish_reason = "error"
        return outputs

    core.step = step
    with pytest.raises(WorkError, match=r"vLLM gave a chain up \(error\)"):
        list(engine.generate(REQUESTS, SAMPLING))
    assert not core.running


def test_it_is_shared_between_clients(model):
    with closing(Live(open_engine(VllmConfig(), model))) as live:
        pieces = list(live.stream(REQUESTS[0], SAMPLING))
        assert {piece.index for piece in pieces} == {5, 6}
        assert sorted((c.key, c.index) for c in live.generate(REQUESTS, SAMPLING)) == [("a", 5), ("a", 6), ("b", 0)]


def test_an_iteration_that_is_left_drops_its_chains(model):
    engine = open_engine(VllmConfig(), model)
    chains = engine.generate(REQUESTS, SAMPLING)
    next(chains)
    chains.close()
    assert engine._llm.llm_engine.running == {}


def test_weights_come_from_memory_and_the_workers_say_what_they_serve(model):
    engine = open_engine(VllmConfig(), model)
    assert engine.version == 0
    engine.push({"w": torch.ones(3)}, 4)
    assert (engine.version, engine._llm.weights["w"].tolist()) == (4, [1.0, 1.0, 1.0])
    assert engine._llm.llm_engine.resets == [True]  # cached keys were of the old weights


def test_handles_are_opened_by_others_and_carry_no_bytes():
    big = torch.arange(2**20, dtype=torch.float32)
    handles = as_handles({"w": big})
    assert len(handles) < 2000
    opened = pickle.loads(handles)["w"]
    assert opened.equal(big)


def test_weights_that_are_not_taken_over_are_one_line(model, monkeypatch):
    engine = open_engine(VllmConfig(), model)

    def fail(self, method, args=()):
        raise ValueError("parameter lm_head.weight (and 0 more) did not come\nlong story")

    monkeypatch.setattr(FakeLLM, "collective_rpc", fail)
    with pytest.raises(WorkError, match=r"^vllm:model: new weights were not taken over \(parameter lm_head.*come\)$"):
        engine.push({}, 1)


def test_asleep_it_serves_nothing_until_it_has_weights_again(model):
    engine = open_engine(VllmConfig(sleep=True), model)
    assert engine._llm.enable_sleep_mode
    engine.sleep()
    engine.wake()
    with pytest.raises(WorkError, match="wake and push first"):
        next(engine.generate(REQUESTS, SAMPLING))
    engine.push({}, 2)
    assert len(list(engine.generate(REQUESTS, SAMPLING))) == 3


def test_what_its_processes_read_is_set_for_them_alone(model, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    engine = open_engine(VllmConfig(gpus=[2, 0]), model)
    assert engine._llm.started_with == {"CUDA_VISIBLE_DEVICES": "7,2", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    assert engine._llm.tensor_parallel_size == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5,7"
    assert "VLLM_USE_V2_MODEL_RUNNER" not in os.environ
    with pytest.raises(InputError, match=r"^engine.gpus: 3, but this machine shows 3 GPUs"):
        open_engine(VllmConfig(gpus=[3]), model)


def test_a_prompt_that_does_not_fit_is_one_line(model):
    engine = open_engine(VllmConfig(max_model_len=64), model)
    with pytest.raises(
        InputError, match=r"vllm:model: 'a' has a prompt of \d+ tokens, which with max_tokens 16 exceeds"
    ):
        list(engine.generate([Request("a", (Message("user", "x" * 60),))], SAMPLING))


def test_vllm_that_can_not_start_is_one_line(model, monkeypatch):
    def fail(**settings):
        raise RuntimeError("No GPU found\nlong story")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fail)
    with pytest.raises(WorkError, match=r"model: vLLM can't start it \(No GPU found\)$"):
        open_engine(VllmConfig(), model)


# ------------------------------------------------------------------------------ vLLM's scheduler, whose steps are given here


class GivenSteps:
    """AsyncScheduler's face: what a step returns is set by the test."""

    def __init__(self):
        self.returned: dict[int, SimpleNamespace] = {}

    def add_request(self, request):
        pass

    def finish_requests(self, request_ids, finished_status):
        return [(name, 0) for name in request_ids]

    def update_from_output(self, scheduler_output, model_runner_output):
        return self.returned


class Rows(NamedTuple):
    """LogprobsLists: a row for each sampled token, the sampled one's log-probability first."""

    logprobs: np.ndarray
    cu_num_generated_tokens: list[int] | None = None

    def slice_request(self, row, count):
        return self.logprobs[row : row + count].tolist()


@pytest.fixture
def scheduler(monkeypatch):
    module = ModuleType("vllm.v1.core.sched.async_scheduler")
    module.AsyncScheduler = GivenSteps
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.async_scheduler", module)
    monkeypatch.delitem(sys.modules, "fathom.engines.vllm_scheduler", raising=False)
    made = importlib.import_module("fathom.engines.vllm_scheduler").WholeChainScheduler()
    yield made
    del sys.modules["fathom.engines.vllm_scheduler"]


def step_of(scheduler, rows: dict[str, tuple[list[int], float, str | None]]) -> dict[str, SimpleNamespace]:
    """One step in which each chain wrote these tokens, of this log-probability, and ended or not; what is told, by chain."""
    outputs = [
        SimpleNamespace(
            request_id=name, new_token_ids=list(ids), new_logprobs=None, prefill_stats=None, finish_reason=finish,
            kv_transfer_params=None,
        )
        for name, (ids, _, finish) in rows.items()
    ]  # fmt: skip
    scheduler.returned = {0: SimpleNamespace(outputs=outputs, finished_requests=None, scheduler_stats=None)}
    logprobs = Rows(np.array([[logprob, -9.0] for _, logprob, _ in rows.values()], dtype=np.float32))
    told = scheduler.update_from_output(
        None, SimpleNamespace(req_id_to_index={name: i for i, name in enumerate(rows)}, logprobs=logprobs)
    )
    return {output.request_id: output for client in told.values() for output in client.outputs}


def request_named(name: str, whole: bool) -> SimpleNamespace:
    params = SimpleNamespace(extra_args={WHOLE: True} if whole else None)
    return SimpleNamespace(request_id=name, sampling_params=params)


def test_whole_chains_are_told_of_once_and_others_at_every_step(scheduler):
    for name in "abc":
        scheduler.add_request(request_named(name, whole=name != "c"))
    first = step_of(scheduler, {"a": ([1], -0.5, None), "b": ([], 0.0, None), "c": ([7], -0.25, None)})
    assert list(first) == ["c"]
    assert first["c"].new_logprobs == [[-0.25, -9.0]]
    assert step_of(scheduler, {"b": ([5], -2.0, None), "a": ([2], -1.5, None)}) == {}
    last = step_of(scheduler, {"b": ([6], -3.0, "stop"), "a": ([3], -0.125, "length")})
    ids = {name: output.new_token_ids for name, output in last.items()}
    logprobs = {name: array("f", o.kv_transfer_params[LOGPROBS]).tolist() for name, o in last.items()}
    assert ids == {"a": [1, 2, 3], "b": [5, 6]}
    assert logprobs == {"a": [-0.5, -1.5, -0.125], "b": [-2.0, -3.0]}
    assert step_of(scheduler, {"c": ([8], -0.5, "stop")})["c"].new_token_ids == [8]


def test_a_whole_chain_that_is_dropped_is_forgotten(scheduler):
    scheduler.add_request(request_named("a", whole=True))
    step_of(scheduler, {"a": ([1], -0.5, None)})
    scheduler.finish_requests(["a"], None)
    assert scheduler._held == {}
