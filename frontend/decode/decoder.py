"""A compiled decode loop: one launch from prompt ids to the last new token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from frontend.config.decoder_config import DecoderConfig
from frontend.decode.control import Rules, write_plan, write_requests
from frontend.decode.conversation import Conversation
from frontend.decode.dump import dump
from frontend.decode.end_tokens import TokenIds, end_tokens
from frontend.decode.generation import Generation, Token
from frontend.decode.not_finite import not_finite_error
from frontend.decode.phases import Phases
from frontend.decode.plan import Request, plan_launch
from frontend.decode.prefix_memory import PrefixMemory
from frontend.decode.processors import BiasList
from frontend.decode.prompts import read_prompt, read_prompts
from frontend.decode.request_checks import check_request, collector, run_options
from frontend.decode.request_options import truth, whole
from frontend.decode.watcher import RequestWatcher, RunOptions
from frontend.graph.operators import Operators
from frontend.graph.tiles import ATTENTION_ROWS, TileConfig, choose_kv_splits
from frontend.model_files.tokenizer import Tokenizer
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import EncodedSchedule
from persistent_runtime.rows.segment import Segment
from scheduling.static_schedule import StaticSchedule

# The host looks for new tokens about this often per token: each look borrows a worker's core.
LOOKS_PER_TOKEN = 8
SHORTEST_POLL_S, LONGEST_POLL_S = 0.0005, 0.005


class Decoder:
    """A model whose decode loop is one megakernel. Made by `compile_decode_loop`."""

    def __init__(self, config: DecoderConfig, operators: Operators, kernel: Megakernel,
                 prefill: Megakernel, buffers: Buffers, tokenizer: Tokenizer | None,
                 phases: Phases) -> None:
        self.config = config
        self.kernel = kernel  # of decode steps
        self.prefill = prefill  # the same kernel, with schedules of steps whose rows see each other
        self.tokenizer = tokenizer
        self.max_context = operators.limits.max_context
        self.max_requests = operators.limits.max_requests
        self.dtype = operators.dtype  # of matrices
        self.kv_dtype = operators.kv_dtype or operators.dtype
        self.backend = kernel.backend.name
        self.phases = phases  # of the start, up to the first token
        self._operators = operators
        self._buffers = buffers
        self._busy = threading.Lock()
        self._interrupted = threading.Event()
        self._prefixes = PrefixMemory(self.max_requests)

    @property
    def graph(self) -> Graph:
        """The decode step with its derived events."""
        return self.kernel.graph

    @property
    def schedule(self) -> StaticSchedule:
        """The schedule of a decode step of one request at a short context."""
        return self.kernel.schedule(self.bindings(1, 1, 1)).schedule

    @property
    def schedules(self) -> list[EncodedSchedule]:
        """One for each shape met so far, of decode steps and of others."""
        return self.kernel.schedules + self.prefill.schedules

    @property
    def schedule_name(self) -> str:
        """static, dynamic or hybrid, as its tasks are placed; or round_robin or unfused."""
        policy = self.kernel.policy
        return policy if policy in ("round_robin", "unfused") else self.schedule.kind

    @property
    def compilations(self) -> int:
        return self.kernel.compilations

    def warmup(self) -> dict[str, Any]:
        """Where the start went, from the process's to the first token (start_record.py)."""
        from frontend.decode.start_record import start_record

        return start_record(self)

    @property
    def num_workers(self) -> int:
        return self.kernel.num_workers

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step of one token reads."""
        return self._operators.active_weight_bytes

    @property
    def tiles(self) -> TileConfig:
        return self._operators.tiles

    def memory_bytes(self) -> dict[str, int]:
        """Bytes reserved per role of tensor: weight, activation, kv_cache, control."""
        total: dict[str, int] = {}
        for spec, memory in self._buffers.owners().items():
            total[spec.role] = total.get(spec.role, 0) + int(memory.nbytes)
        return total

    def bindings(self, tokens: int, logit_rows: int, context: int) -> dict[str, int]:
        """Sizes of one step: rows, rows that want a token, longest context."""
        splits = choose_kv_splits(self.config, self.kernel.target, tokens, context)
        return {"tokens": tokens, "logit_rows": logit_rows, "context": context,
                "kv_splits": splits}

    @overload
    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation: ...

    @overload
    def generate(self, prompt: Sequence[str] | Sequence[Sequence[int]], **options: Any
                 ) -> list[Generation]: ...

    @overload
    def generate(self, prompt: Any, **options: Any) -> Any: ...

    def generate(self, prompt: Any, *, max_new_tokens: int | None = None,
                 ignore_eos: bool | None = False, stop: str | Sequence[str] | None = (),
                 eos_token_id: TokenIds = None, trace_steps: int | None = 0, **sampling: Any
                 ) -> Generation | list[Generation]:
        """Continuation of one prompt, or of a batch of them, all in one launch.

        prompt: text, token ids, a tensor of ids, what a tokenizer returns, or a list of one of
        these (frontend/decode/prompts.py). max_new_tokens: by default what the model's
        generation_config.json says, else 128, and no more than there is room for. stop: texts
        before which the output is cut; they may have special tokens. eos_token_id: what ends the
        output, instead of the model's own. trace_steps: how many steps of each segment leave their
        times in `Generation.trace`. sampling: fields of `Sampling` (temperature, top_k, top_p,
        seed, logprobs, suppress_tokens, …); what is left out, or None, is as the model's
        generation_config.json says, else greedy.

        Raises UserError for what is no prompt, an empty prompt, ids outside the vocabulary, prompts
        that do not fit max_context or max_requests, text when the model has no tokenizer, and
        options of a wrong type or outside their limits.
        """
        prompts, is_batch = read_prompts(self, prompt)
        options = run_options(self, prompts, max_new_tokens, ignore_eos, stop, sampling,
                              trace_steps=trace_steps, eos_token_id=eos_token_id)
        results = [Generation(ids) for ids in prompts]
        for _ in self._run(results, options):
            pass
        return results if is_batch else results[0]

    def stream(self, prompt: Any, *, max_new_tokens: int | None = None,
               ignore_eos: bool | None = False, stop: str | Sequence[str] | None = (),
               eos_token_id: TokenIds = None, result: Generation | None = None,
               keep_cache: bool | None = False, is_answer: bool = False, **sampling: Any
               ) -> Iterator[Token]:
        """Yields each token while the kernel runs. Leaving the loop early ends the launch.

        One prompt, options as in `generate`. `result`, if given, collects ids and times on the way.
        keep_cache: go on from what the KV cache holds of the same tokens. is_answer: the text
        stands alone; else text of the prompt + pieces = text of all tokens.
        """
        into = collector(result)
        into.prompt_ids[:] = read_prompt(self, prompt)
        options = run_options(self, [into.prompt_ids], max_new_tokens, ignore_eos, stop, sampling,
                              eos_token_id=eos_token_id, is_answer=is_answer)
        return self._run([into], options, keep_cache=truth("keep_cache", keep_cache))

    def chat(self, system: str | None = None) -> Conversation:
        """A conversation by the model's chat template, the KV cache kept between its turns.

        Raises UserError for a model without a tokenizer or a chat template.
        """
        return Conversation(self, system)

    def interrupt(self) -> None:
        """Have the running generation end, its reason "aborted"; for signal handlers, threads."""
        self._interrupted.set()

    def _run(self, results: list[Generation], options: RunOptions, *, keep_cache: bool = False
             ) -> Iterator[Token]:
        """One launch; a generator, so that tokens stream. Arguments are checked at once."""
        check_request(self, [len(result.prompt_ids) for result in results], options)
        for row, result in enumerate(results):
            result.sampling = options.sampling.of_row(row)
        ends = end_tokens(self, options)
        biases = BiasList.of(options.sampling, ends.eos, self.config.vocab_size)
        watchers = [RequestWatcher(result, options, ends, self.tokenizer) for result in results]
        return self._tokens(watchers, options, Rules(ends, biases), keep_cache)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One launch at a time: they share the KV cache and the control tensors."""
        if not self._busy.acquire(blocking=False):
            raise UserError("this decoder is generating already; let that finish, or close its "
                            "stream")
        try:
            yield
        finally:
            self._busy.release()

    def _tokens(self, watchers: list[RequestWatcher], options: RunOptions, rules: Rules,
                keep_cache: bool) -> Iterator[Token]:
        with self._exclusive():
            self._interrupted.clear()
            start_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            requests = []
            for request, watcher in enumerate(watchers):
                result = watcher.result
                cached = self._prefixes.claim(request, result.prompt_ids, reuse=keep_cache)
                result.start_ns, result.prefilled_tokens = start_ns, len(result.prompt_ids) - cached
                requests.append(Request(len(result.prompt_ids), options.max_new_tokens, cached))
            self.phases.fill("waiting for a prompt")
            before = self.kernel.launches
            with self.phases("prepare launch"):
                segments = self._prepare([w.result for w in watchers], requests, rules)
                launch = self.kernel.launch(segments, finished=self._control("finished"),
                                            trace_steps=options.trace_steps)
            for watcher in watchers:
                watcher.result.launches = self.kernel.launches - before
            try:
                yield from self._watch(launch, watchers)
            finally:
                launch.abort()
                self._prefixes.remember(self._control, [w.result for w in watchers])
                if options.trace_steps:
                    traces = launch.trace()
                    for watcher in watchers:
                        watcher.result.trace = traces

    def _watch(self, launch: Any, watchers: list[RequestWatcher]) -> Iterator[Token]:
        """Reads tokens as their request's length grows; the worker publishes length last."""
        length, pause_s, running = self._control("length"), SHORTEST_POLL_S, True
        token_ids, times, logprobs = (
            self._control(name) for name in ("token_ids", "token_time", "token_logprob"))
        while running:
            running = launch.is_running  # asked before the length, so the last tokens are seen
            available = [int(length[request]) for request in range(len(watchers))]
            grown = False
            for request, (watcher, end) in enumerate(zip(watchers, available, strict=True)):
                for position in range(watcher.seen, end):
                    if self._interrupted.is_set():  # whoever reads may be far behind the kernel
                        return
                    grown = True
                    token = watcher.push(int(token_ids[request, position]),
                                         int(times[request, position]),
                                         float(logprobs[request, position]), request)
                    self.phases.first_token(int(times[request, position]))
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

    def _prepare(self, results: list[Generation], requests: list[Request], rules: Rules
                 ) -> list[Segment]:
        """Fills the control tensors for a launch; returns its segments."""
        plan = plan_launch(requests, self._operators.tiles.linear_rows)
        write_plan(self._control, plan)
        write_requests(self._control, results, requests, rules)
        return [self._segment(s.tokens, s.logit_rows, s.context, steps=s.steps,
                              first_row=s.first_row, row_stride=s.row_stride,
                              first_logit=s.first_logit, row_advance=s.row_advance)
                for s in plan.segments]

    def _check_finite(self, watchers: list[RequestWatcher]) -> None:
        """Raises NotFiniteError where a request ended because its logits were no numbers."""
        finished, failed = self._control("finished"), {}
        for request, watcher in enumerate(watchers):
            if finished[request] == layout.NOT_FINITE and not watcher.stopped:
                failed[request] = len(watcher.result.output_ids)
                watcher.result.finish_reason = "error"
        if failed:
            raise not_finite_error(failed, len(watchers), self.dtype, self.kv_dtype,
                                   self._operators.weights.values(),
                                   self._buffers.owners().__getitem__)

    def logits(self, token_ids: Any, last: int | None = None) -> npt.NDArray[np.float32]:
        """Logits after each token of one prompt, or after the last so many: [tokens, vocab_size]
        float32. Tokens before those are computed as in the prefill of a generation.

        Raises UserError for prompts and for numbers that cannot be.
        """
        ids = read_prompt(self, token_ids)
        wanted = whole("last", last, default=len(ids))
        if not 1 <= wanted <= len(ids):
            raise UserError(f"last is {last}; give from 1 to {len(ids)}, the number of tokens")
        unwanted = len(ids) - wanted
        if len(ids) > self.max_context:
            raise UserError(f"{len(ids)} tokens exceed max_context {self.max_context}; compile "
                            f"with a larger one")
        with self._exclusive():
            self._control("token_ids")[0, :len(ids)] = ids
            self._control("row_request")[:len(ids)] = 0
            self._control("row_position")[:len(ids)] = np.arange(len(ids))
            self._control("finished")[:] = 1  # nothing is to be appended to a request
            self._prefixes.forget(0)
            for first in range(0, unwanted, self._operators.tiles.linear_rows):
                rows = min(self._operators.tiles.linear_rows, unwanted - first)
                self.kernel.launch([self._segment(rows, 0, first + rows, first_row=first)]).wait()
            parts = []
            # memory is held for the logits of so many rows
            for first in range(unwanted, len(ids), ATTENTION_ROWS):
                rows = min(ATTENTION_ROWS, len(ids) - first)
                self._control("logit_row")[:rows] = np.arange(rows)
                segment = self._segment(rows, rows, first + rows, first_row=first)
                self.kernel.launch([segment]).wait()
                flat = self._buffers.array(self._operators.tensors["logits"]).reshape(-1)
                part = flat[:rows * self.config.vocab_size].reshape(rows, -1)
                parts.append(part.copy())
            return np.concatenate(parts)

    def prepare(self) -> None:
        """Build the schedule of a decode step ahead of the first request."""
        self.kernel.schedule(self.bindings(1, 1, 1))

    def dump(self, path: str | Path) -> list[Path]:
        """Write graph, tasks, schedule and worker source to a folder; returns the files."""
        return dump(self, Path(path))

    def _control(self, name: str) -> Any:
        return self._buffers.array(self._operators.tensors[name])

    def _segment(self, tokens: int, logit_rows: int, context: int, **rows: int) -> Segment:
        rows_are_apart = tokens == 1 or rows.get("row_advance", 0) > 0
        kernel = self.kernel if rows_are_apart else self.prefill
        return kernel.segment(self.bindings(tokens, logit_rows, context), self._buffers, **rows)
