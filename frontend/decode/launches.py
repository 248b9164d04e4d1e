"""The launches of one decoder: control tensors filled, segments planned, tokens read as they come.

They share the KV cache and the control tensors, so there is one at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from frontend.decode.control import Rules, write_plan, write_requests
from frontend.decode.generation import Token
from frontend.decode.not_finite import not_finite_error
from frontend.decode.phases import Phases
from frontend.decode.plan import Request, plan_launch
from frontend.decode.prefix_memory import PrefixMemory
from frontend.decode.request_options import RunOptions
from frontend.decode.watcher import RequestWatcher
from frontend.graph.control import Control
from frontend.graph.operators import Operators
from frontend.graph.tiles import ATTENTION_ROWS, choose_kv_splits
from persistent_runtime.graph_schedules import GraphSchedules
from persistent_runtime.launch.launch import Launch
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows import layout
from persistent_runtime.rows.segment import Segment

# The host looks for new tokens about this often per token: each look borrows a worker's core.
LOOKS_PER_TOKEN = 8
SHORTEST_POLL_S, LONGEST_POLL_S = 0.0005, 0.005


class Launches:
    """decode: the kernel of decode steps; prefill: its schedules of steps whose rows see each
    other."""

    def __init__(self, operators: Operators, decode: Megakernel, prefill: GraphSchedules,
                 buffers: Buffers, phases: Phases) -> None:
        self.control: Control[Any] = operators.control.each(buffers.array)  # host arrays
        self._operators, self._buffers = operators, buffers
        self._decode, self._prefill = decode, prefill
        self._phases = phases
        self._prefixes = PrefixMemory(operators.limits.max_requests)
        self._busy = threading.Lock()
        self._interrupted = threading.Event()

    def bindings(self, tokens: int, logit_rows: int, context: int) -> dict[str, int]:
        """Sizes of one step: rows, rows that want a token, longest context."""
        splits = choose_kv_splits(self._operators.config, self._decode.target, tokens, context)
        return {"tokens": tokens, "logit_rows": logit_rows, "context": context,
                "kv_splits": splits}

    def segment(self, tokens: int, logit_rows: int, context: int, **rows: int) -> Segment:
        """Of steps with these sizes; `rows` as `Segment` has them."""
        rows_are_apart = tokens == 1 or rows.get("row_advance", 0) > 0
        part = self._decode if rows_are_apart else self._prefill
        return part.segment(self.bindings(tokens, logit_rows, context), self._buffers, **rows)

    def interrupt(self) -> None:
        """Has the running generation end; for signal handlers and other threads."""
        self._interrupted.set()

    def tokens(self, watchers: Sequence[RequestWatcher], options: RunOptions, rules: Rules,
               keep_cache: bool) -> Generator[Token, None, None]:
        """One launch that answers the watchers' prompts, each token as soon as it is there."""
        results = [watcher.result for watcher in watchers]
        with self._exclusive():
            self._interrupted.clear()
            start_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            requests = []
            for slot, result in enumerate(results):
                cached = self._prefixes.claim(slot, result.prompt_ids, reuse=keep_cache)
                result.start_ns, result.prefilled_tokens = start_ns, len(result.prompt_ids) - cached
                requests.append(Request(len(result.prompt_ids), options.max_new_tokens, cached))
            self._phases.fill("waiting for a prompt")
            before = self._decode.launches
            with self._phases("prepare launch"):
                plan = plan_launch(requests, self._operators.tiles.linear_rows)
                write_plan(self.control, plan)
                write_requests(self.control, results, requests, rules)
                segments = [self.segment(s.tokens, s.logit_rows, s.context, **s.rows)
                            for s in plan.segments]
                launch = self._decode.launch(segments, finished=self.control.finished,
                                             trace_steps=options.trace_steps)
            for result in results:
                result.launches = self._decode.launches - before
            try:
                yield from self._watch(launch, watchers)
            finally:
                launch.abort()
                self._prefixes.remember(self.control, results)
                if options.trace_steps:
                    traces = launch.trace()
                    for result in results:
                        result.trace = traces

    def logits(self, ids: Sequence[int], wanted: int) -> npt.NDArray[np.float32]:
        """After the last `wanted` tokens of one prompt: [wanted, vocab_size]. Tokens before those
        are computed as in the prefill of a generation."""
        control, chunk = self.control, self._operators.tiles.linear_rows
        unwanted, vocab = len(ids) - wanted, self._operators.config.vocab_size
        with self._exclusive():
            control.token_ids[0, :len(ids)] = ids
            control.row_request[:len(ids)] = 0
            control.row_position[:len(ids)] = np.arange(len(ids))
            control.finished[:] = layout.ENDED  # nothing is to be appended to a request
            self._prefixes.forget(0)
            for first in range(0, unwanted, chunk):
                rows = min(chunk, unwanted - first)
                self._decode.launch([self.segment(rows, 0, first + rows, first_row=first)]).wait()
            parts = []
            # memory is held for the logits of so many rows
            for first in range(unwanted, len(ids), ATTENTION_ROWS):
                rows = min(ATTENTION_ROWS, len(ids) - first)
                control.logit_row[:rows] = np.arange(rows)
                segment = self.segment(rows, rows, first + rows, first_row=first)
                self._decode.launch([segment]).wait()
                flat = self._buffers.array(self._operators.tensors["logits"]).reshape(-1)
                parts.append(flat[:rows * vocab].reshape(rows, -1).copy())
            return np.concatenate(parts)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise UserError("this decoder is generating already; let that finish, or close its "
                            "stream")
        try:
            yield
        finally:
            self._busy.release()

    def _watch(self, launch: Launch, watchers: Sequence[RequestWatcher]) -> Iterator[Token]:
        """Reads tokens as their request's length grows; the worker publishes length last."""
        control, pause_s, running = self.control, SHORTEST_POLL_S, True
        while running:
            running = launch.is_running  # asked before the length, so the last tokens are seen
            available = [int(control.length[request]) for request in range(len(watchers))]
            grown = False
            for request, (watcher, end) in enumerate(zip(watchers, available, strict=True)):
                for position in range(watcher.seen, end):
                    if self._interrupted.is_set():  # the reader may be far behind the kernel
                        return
                    grown, at = True, (request, position)
                    time_ns = int(control.token_time[at])
                    token = watcher.push(int(control.token_ids[at]), time_ns,
                                         float(control.token_logprob[at]), request)
                    self._phases.first_token(time_ns)
                    if token is not None:
                        yield token
                    if watcher.stopped:
                        launch.finish(request)
            if self._interrupted.is_set() or all(watcher.stopped for watcher in watchers):
                return
            if running and not grown:
                time.sleep(pause_s)
            recent = watchers[0].result.token_times_ns[-2:]
            if len(recent) == 2:
                gap_s = (recent[1] - recent[0]) / 1e9
                pause_s = min(max(gap_s / LOOKS_PER_TOKEN, SHORTEST_POLL_S), LONGEST_POLL_S)
        launch.check()
        self._check_finite(watchers)

    def _check_finite(self, watchers: Sequence[RequestWatcher]) -> None:
        """Raises NotFiniteError where a request ended because its logits were no numbers."""
        failed = {}
        for request, watcher in enumerate(watchers):
            if self.control.finished[request] == layout.NOT_FINITE and not watcher.stopped:
                failed[request] = len(watcher.result.output_ids)
                watcher.result.finish_reason = "error"
        if failed:
            raise not_finite_error(failed, len(watchers), self._operators.dtype,
                                   self._operators.kv_dtype,
                                   self._operators.weights.values(),
                                   self._buffers.owners().__getitem__)
