"""A compiled decode loop: one launch from prompt ids to the last new token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.printer import format_graph, format_tasks
from frontend.config import DecoderConfig
from frontend.operators import Operators
from frontend.tiles import ATTENTION_ROWS, TileConfig, choose_kv_splits
from frontend.tokenizer import Tokenizer
from persistent_runtime.buffers import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.records import Segment
from scheduling.static_schedule import StaticSchedule

# The host looks for new tokens about this often per token: each look borrows a worker's core.
LOOKS_PER_TOKEN = 8
SHORTEST_POLL_S, LONGEST_POLL_S = 0.0005, 0.005


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, as soon as the kernel has written it."""

    id: int
    text: str  # text that this token completes; may be empty
    time_ns: int  # CLOCK_MONOTONIC, taken on the worker that chose the token


@dataclass(slots=True)
class Generation:
    """The result of one `generate`. Times in milliseconds; TPOT leaves the first token out."""

    prompt_ids: list[int]
    output_ids: list[int] = field(default_factory=list)
    text: str | None = None
    start_ns: int = 0
    token_times_ns: list[int] = field(default_factory=list)
    launches: int = 0

    @property
    def ttft_ms(self) -> float:
        return (self.token_times_ns[0] - self.start_ns) / 1e6

    @property
    def inter_token_ms(self) -> npt.NDArray[np.float64]:
        return np.diff(np.array(self.token_times_ns, np.int64)) / 1e6

    @property
    def tpot_ms(self) -> dict[str, float] | None:
        """p50, p90 and p99 of the time between tokens; None for fewer than two tokens."""
        gaps = self.inter_token_ms
        if not len(gaps):
            return None
        return {f"p{p}": round(float(np.percentile(gaps, p)), 4) for p in (50, 90, 99)}

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, per second; of the whole run for one token."""
        times = self.token_times_ns
        if len(times) < 2:
            return 1e9 / max(times[-1] - self.start_ns, 1)
        return (len(times) - 1) * 1e9 / max(times[-1] - times[0], 1)


class Decoder:
    """A model whose decode loop is one megakernel. Made by `compile_decode_loop`."""

    def __init__(self, config: DecoderConfig, operators: Operators, kernel: Megakernel,
                 buffers: Buffers, tokenizer: Tokenizer | None, chunk: int) -> None:
        self.config = config
        self.kernel = kernel
        self.tokenizer = tokenizer
        self.max_context = operators.limits.max_context
        self.dtype = operators.dtype
        self.backend = kernel.backend.name
        self._chunk = chunk
        self._operators = operators
        self._buffers = buffers
        self._busy = threading.Lock()

    @property
    def graph(self) -> Graph:
        """The decode step with its derived events."""
        return self.kernel.graph

    @property
    def schedule(self) -> StaticSchedule:
        """The schedule of a decode step of one request at a short context."""
        return self.kernel.schedule(self.bindings(1, 1, 1)).schedule

    @property
    def compilations(self) -> int:
        return self.kernel.compilations

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

    def generate(self, prompt: str | Sequence[int], *, max_new_tokens: int = 128,
                 ignore_eos: bool = False) -> Generation:
        """Greedy continuation of a text or of token ids.

        Raises UserError for an empty prompt, ids outside the vocabulary, a prompt that does not
        fit max_context, or text when the model has no tokenizer.
        """
        result = Generation(self._prompt_ids(prompt))
        pieces: list[str] = []
        for token in self._run(result, max_new_tokens, ignore_eos):
            pieces.append(token.text)
        result.text = "".join(pieces) if self.tokenizer else None
        return result

    def stream(self, prompt: str | Sequence[int], *, max_new_tokens: int = 128,
               ignore_eos: bool = False, result: Generation | None = None) -> Iterator[Token]:
        """Yields each token while the kernel runs. Leaving the loop early ends the launch.

        `result`, if given, collects ids and times on the way.
        """
        into = result if result is not None else Generation([])
        into.prompt_ids[:] = self._prompt_ids(prompt)
        return self._run(into, max_new_tokens, ignore_eos)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise UserError("this model has no tokenizer; give the prompt as token ids "
                                "(--prompt-ids 1,2,3)")
            ids = self.tokenizer.encode(prompt)
        else:
            ids = [int(token) for token in prompt]
        if not ids:
            raise UserError("the prompt is empty; give at least one token")
        vocab = self.config.vocab_size
        bad = next((token for token in ids if not 0 <= token < vocab), None)
        if bad is not None:
            raise UserError(f"prompt id {bad} is outside the vocabulary of {vocab} tokens; give "
                            f"ids from 0 to {vocab - 1}")
        return ids

    def _run(self, result: Generation, max_new_tokens: int, ignore_eos: bool) -> Iterator[Token]:
        """One launch; a generator, so that tokens stream. Arguments are checked at once."""
        prompt_tokens = len(result.prompt_ids)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; give at least 1")
        needed = prompt_tokens + max_new_tokens
        if needed > self.max_context:
            possible = needed <= self.config.max_position_embeddings
            raise UserError(
                f"{prompt_tokens} prompt tokens and {max_new_tokens} new tokens exceed "
                f"max_context {self.max_context}; shorten one"
                + (f" or compile with --max-context {needed}" if possible else ""))
        return self._tokens(result, max_new_tokens, ignore_eos)

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

    def _tokens(self, result: Generation, max_new_tokens: int, ignore_eos: bool
                ) -> Iterator[Token]:
        with self._exclusive():
            result.start_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            segments = self._plan(result.prompt_ids, max_new_tokens, ignore_eos)
            launches_before = self.kernel.launches
            launch = self.kernel.launch(segments, finished=self._control("finished"))
            result.launches = self.kernel.launches - launches_before
            try:
                yield from self._watch(launch, result)
            finally:
                launch.abort()

    def _watch(self, launch: Any, result: Generation) -> Iterator[Token]:
        """Reads tokens as their request's length grows; the worker publishes length last."""
        token_ids, times = self._control("token_ids")[0], self._control("token_time")[0]
        length = self._control("length")
        seen = len(result.prompt_ids)
        text = self.tokenizer.stream() if self.tokenizer else None
        limit, stop_ids = self._control("length_limit")[0], self._control("stop_ids")
        pause_s = SHORTEST_POLL_S
        running = True
        while running:
            running = launch.is_running  # asked before the length, so the last tokens are seen
            available = int(length[0])
            if available == seen and running:
                time.sleep(pause_s)
            for position in range(seen, available):
                token_id = int(token_ids[position])
                result.output_ids.append(token_id)
                result.token_times_ns.append(int(times[position]))
                piece = text.push(token_id) if text else ""
                if text and (position + 1 == limit or token_id in stop_ids):
                    piece += text.flush()
                yield Token(token_id, piece, int(times[position]))
            if available - seen > 0 and len(result.token_times_ns) > 1:
                gap_s = (result.token_times_ns[-1] - result.token_times_ns[-2]) / 1e9
                pause_s = min(max(gap_s / LOOKS_PER_TOKEN, SHORTEST_POLL_S), LONGEST_POLL_S)
            seen = available
        launch.check()

    def _plan(self, prompt_ids: list[int], max_new_tokens: int, ignore_eos: bool
              ) -> list[Segment]:
        """Prefill chunks, the chunk that answers, then decode steps: one launch.

        Row r of the plan stands at position r; the row after the prompt is the decode row, whose
        position the device moves.
        """
        count, chunk = len(prompt_ids), self._chunk
        end = count + max_new_tokens
        self._control("token_ids")[0, :count] = prompt_ids
        self._control("row_request")[:count + 1] = 0
        self._control("row_position")[:count + 1] = np.arange(count + 1)
        self._control("length")[0] = count
        self._control("length_limit")[0] = end
        self._control("finished")[0] = 0
        stop_ids = self._control("stop_ids")
        stop_ids[:] = -1
        if not ignore_eos:
            stop_ids[:len(self.config.eos_token_ids)] = self.config.eos_token_ids
        full_chunks = (count - 1) // chunk
        rest = count - full_chunks * chunk
        self._control("logit_row")[:2] = rest - 1, 0
        segments = []
        if full_chunks:
            segments.append(self._segment(chunk, 0, count, steps=full_chunks, row_stride=chunk))
        segments.append(self._segment(rest, 1, count, first_row=full_chunks * chunk))
        if max_new_tokens > 1:
            segments.append(self._segment(1, 1, end, steps=max_new_tokens - 1, first_row=count,
                                          first_logit=1, row_advance=1))
        return segments

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each of the given tokens: [tokens, vocab_size] float32."""
        ids = self._prompt_ids(list(token_ids))
        if len(ids) > self.max_context:
            raise UserError(f"{len(ids)} tokens exceed max_context {self.max_context}; compile "
                            f"with a larger one")
        with self._exclusive():
            self._control("token_ids")[0, :len(ids)] = ids
            self._control("row_request")[:len(ids)] = 0
            self._control("row_position")[:len(ids)] = np.arange(len(ids))
            self._control("finished")[0] = 1  # nothing is to be appended to the request
            parts = []
            for first in range(0, len(ids), ATTENTION_ROWS):  # memory is held for so many rows
                rows = min(ATTENTION_ROWS, len(ids) - first)
                self._control("logit_row")[:rows] = np.arange(rows)
                segment = self._segment(rows, rows, first + rows, first_row=first)
                self.kernel.launch([segment]).wait()
                flat = self._buffers.array(self._operators.tensors["logits"]).reshape(-1)
                parts.append(flat[:rows * self.config.vocab_size].reshape(rows, -1).copy())
            return np.concatenate(parts)

    def prepare(self) -> None:
        """Build the schedule of a decode step ahead of the first request."""
        self.kernel.schedule(self.bindings(1, 1, 1))

    def dump(self, path: str | Path) -> list[Path]:
        """Write graph, tasks, schedule and worker source to a folder; returns the files."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        schedule = self.schedule
        orders = "\n".join(
            f"worker {w}: " + " ".join(schedule.table.task_name(int(t)) for t in order)
            for w, order in enumerate(schedule.orders))
        texts = {"graph.txt": format_graph(self.graph), "tasks.txt": format_tasks(schedule.table),
                 "schedule.txt": f"{schedule.policy}\n{orders}\n", **self.kernel.kernel.sources()}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]

    def _control(self, name: str) -> Any:
        return self._buffers.array(self._operators.tensors[name])

    def _segment(self, tokens: int, logit_rows: int, context: int, **rows: int) -> Segment:
        return self.kernel.segment(self.bindings(tokens, logit_rows, context), self._buffers,
                                   **rows)
