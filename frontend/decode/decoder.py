"""A compiled decode loop: one launch from prompt ids to the last new token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from frontend.config.decoder_config import DecoderConfig
from frontend.decode.control import Rules
from frontend.decode.conversation import Conversation
from frontend.decode.dump import dump
from frontend.decode.end_tokens import end_tokens
from frontend.decode.generation import Generation, Token
from frontend.decode.launches import Launches
from frontend.decode.phases import Phases
from frontend.decode.processors import BiasList
from frontend.decode.prompts import read_prompt, read_prompts
from frontend.decode.request_checks import check_request, collector, run_options
from frontend.decode.request_options import RunOptions, TokenIds, truth, whole
from frontend.decode.start_record import start_record
from frontend.decode.watcher import RequestWatcher
from frontend.graph.operators import Operators
from frontend.graph.tiles import TileConfig
from frontend.model_files.tokenizer import Tokenizer
from persistent_runtime.graph_schedules import GraphSchedules
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows.encode import EncodedSchedule
from scheduling.schedule import Schedule


class Decoder:
    """A model whose decode loop is one megakernel. Made by `compile_decode_loop`."""

    def __init__(self, config: DecoderConfig, operators: Operators, kernel: Megakernel,
                 prefill: GraphSchedules, buffers: Buffers, tokenizer: Tokenizer | None,
                 phases: Phases) -> None:
        self.config = config
        self.kernel = kernel  # of decode steps
        self.prefill = prefill  # schedules of the same kernel, of steps whose rows see each other
        self.tokenizer = tokenizer
        self.max_context = operators.limits.max_context
        self.max_requests = operators.limits.max_requests
        self.dtype = operators.dtype  # of matrices
        self.kv_dtype = operators.kv_dtype
        self.backend = kernel.backend.name
        self.phases = phases  # of the start, up to the first token
        self._operators = operators
        self._buffers = buffers
        self._launches = Launches(operators, kernel, prefill, buffers, phases)

    @property
    def graph(self) -> Graph:
        """The decode step with its derived events."""
        return self.kernel.graph

    @property
    def schedule(self) -> Schedule:
        """The schedule of a decode step of one request at a short context."""
        return self.kernel.schedule(self.bindings(1, 1, 1)).schedule

    @property
    def schedules(self) -> list[EncodedSchedule]:
        """One for each shape met so far, of decode steps and of others."""
        return self.kernel.schedules + self.prefill.schedules

    @property
    def schedule_name(self) -> str:
        """Its name, or what `auto` came to."""
        return self.schedule.name

    @property
    def compilations(self) -> int:
        return self.kernel.compilations

    def warmup(self) -> dict[str, Any]:
        """Where the start went, from the process's to the first token (start_record.py)."""
        return {**start_record(self.phases, self.kernel, self.schedule, self.schedules),
                "weight_bytes": self.weight_bytes, "memory_bytes": self.memory_bytes(),
                "dtype": self.dtype}

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
        return self._launches.bindings(tokens, logit_rows, context)

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
               ) -> Generator[Token, None, None]:
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
        self._launches.interrupt()

    def _run(self, results: list[Generation], options: RunOptions, *, keep_cache: bool = False
             ) -> Generator[Token, None, None]:
        """One launch; a generator, so that tokens stream. Arguments are checked at once."""
        check_request(self, [len(result.prompt_ids) for result in results], options)
        for row, result in enumerate(results):
            result.sampling = options.sampling.of_row(row)
        ends = end_tokens(self, options)
        biases = BiasList.of(options.sampling, ends.eos, self.config.vocab_size)
        watchers = [RequestWatcher(result, options, ends, self.tokenizer) for result in results]
        return self._launches.tokens(watchers, options, Rules(ends, biases), keep_cache)

    def logits(self, token_ids: Any, last: int | None = None) -> npt.NDArray[np.float32]:
        """Logits after each token of one prompt, or after the last so many: [tokens, vocab_size]
        float32. Tokens before those are computed as in the prefill of a generation.

        Raises UserError for prompts and for numbers that cannot be.
        """
        ids = read_prompt(self, token_ids)
        wanted = whole("last", last, default=len(ids))
        if not 1 <= wanted <= len(ids):
            raise UserError(f"last is {last}; give from 1 to {len(ids)}, the number of tokens")
        if len(ids) > self.max_context:
            raise UserError(f"{len(ids)} tokens exceed max_context {self.max_context}; compile "
                            f"with a larger one")
        return self._launches.logits(ids, wanted)

    def prepare(self) -> None:
        """Build the schedule of a decode step ahead of the first request."""
        self.kernel.schedule(self.bindings(1, 1, 1))

    def dump(self, path: str | Path) -> list[Path]:
        """Write graph, tasks, schedule and worker source to a folder; returns the files."""
        return dump(Path(path), self.kernel, self.prefill, self.schedule)
