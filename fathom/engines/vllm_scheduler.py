"""vLLM's scheduler, but for one thing: chains that are asked for whole are told of once, when they end.

By itself vLLM sends every chain's newest token, and its log-probability, to the process that asked, at every step. For
hundreds of chains that takes both processes longer than the model takes: `RequestOutputKind.FINAL_ONLY` drops what arrives
only there. vLLM imports this in its engine's process (`scheduler_cls`). What is scheduled, and when, is vLLM's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from fathom.engines.vllm_session import LOGPROBS, WHOLE


@dataclass
class _Held:
    """What a whole chain has written so far."""

    ids: list[int] = field(default_factory=list)
    logprobs: array = field(default_factory=lambda: array("f"))


class WholeChainScheduler(AsyncScheduler):
    """See the module docstring."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._held: dict[str, _Held] = {}

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        if ((request.sampling_params and request.sampling_params.extra_args) or {}).get(WHOLE):
            self._held[request.request_id] = _Held()

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        ended = super().finish_requests(request_ids, finished_status)
        for name, _ in ended:
            self._held.pop(name, None)
        return ended

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Outputs by client: at each step those of other chains, and whole ones that ended."""
        if not self._held:
            return super().update_from_output(scheduler_output, model_runner_output)
        logprobs, model_runner_output.logprobs = model_runner_output.logprobs, None
        by_client = super().update_from_output(scheduler_output, model_runner_output)
        rows = model_runner_output.req_id_to_index
        sampled = None if logprobs is None else logprobs.logprobs[:, 0].tolist()
        for outputs in by_client.values():
            outputs.outputs = list(self._told(outputs.outputs, rows, logprobs, sampled))
        return {client: o for client, o in by_client.items() if o.outputs or o.finished_requests or o.scheduler_stats}

    def _told(self, outputs: Iterable[Any], rows: dict[str, int], logprobs: Any, sampled: Any) -> Iterable[Any]:
        for output in outputs:
            held, count = self._held.get(output.request_id), len(output.new_token_ids)
            row = rows[output.request_id]
            if held is None:
                if logprobs is not None and count:
                    output.new_logprobs = logprobs.slice_request(row, count)
                yield output
                continue
            held.ids += output.new_token_ids
            if sampled is not None and count:
                starts = logprobs.cu_num_generated_tokens
                first = row if starts is None else starts[row]
                held.logprobs.extend(sampled[first : first + count])
            if output.finish_reason is not None:
                del self._held[output.request_id]
                output.new_token_ids = held.ids
                if held.logprobs:
                    output.kv_transfer_params = {LOGPROBS: held.logprobs.tobytes()}
                yield output
