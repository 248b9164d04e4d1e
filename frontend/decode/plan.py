"""One launch for a few requests of any length: prefill in chunks, then decode steps in lockstep.

Rows are ragged, so a chunk may hold the end of one prompt and the beginning of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """prompt_tokens and max_new_tokens count positions; the keys and values of the first `cached`
    positions are there already, fewer than prompt_tokens."""

    prompt_tokens: int
    max_new_tokens: int
    cached: int = 0

    @property
    def end(self) -> int:
        return self.prompt_tokens + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """Sizes and rows of a segment, as `persistent_runtime.rows.segment.Segment` has them."""

    tokens: int
    logit_rows: int
    context: int
    steps: int = 1
    first_row: int = 0
    row_stride: int = 0
    first_logit: int = 0
    row_advance: int = 0

    @property
    def rows(self) -> dict[str, int]:
        """All but the sizes of a step."""
        return {"steps": self.steps, "first_row": self.first_row, "row_stride": self.row_stride,
                "first_logit": self.first_logit, "row_advance": self.row_advance}


@dataclass(slots=True)
class Plan:
    """Row r of the plan is position row_position[r] of request row_request[r]; logit_row holds,
    for every answer, its row within its step."""

    row_request: list[int] = field(default_factory=list)
    row_position: list[int] = field(default_factory=list)
    logit_row: list[int] = field(default_factory=list)
    segments: list[PlannedSegment] = field(default_factory=list)


def plan_launch(requests: Sequence[Request], chunk: int) -> Plan:
    """The rows and segments that answer `requests`, at most `chunk` rows in a step.

    The last row of every prompt is answered in its chunk; from then on each request has one row
    per step, whose position the device moves.
    """
    plan = Plan()
    for k, request in enumerate(requests):
        positions = range(request.cached, request.prompt_tokens)
        plan.row_request += [k] * len(positions)
        plan.row_position += positions
    total = len(plan.row_request)
    for first in range(0, total, chunk):
        _add_chunk(plan, requests, first, min(first + chunk, total))
    decoding = [k for k, request in enumerate(requests) if request.max_new_tokens > 1]
    if decoding:
        plan.row_request += decoding
        plan.row_position += [requests[k].prompt_tokens for k in decoding]
        plan.segments.append(PlannedSegment(
            len(decoding), len(decoding), max(requests[k].end for k in decoding),
            steps=max(requests[k].max_new_tokens for k in decoding) - 1, first_row=total,
            first_logit=len(plan.logit_row), row_advance=1))
        plan.logit_row += range(len(decoding))
    return plan


def _add_chunk(plan: Plan, requests: Sequence[Request], first: int, last: int) -> None:
    answers = [row - first for row in range(first, last)
               if plan.row_position[row] == requests[plan.row_request[row]].prompt_tokens - 1]
    context = max(plan.row_position[row] for row in range(first, last)) + 1
    before = plan.segments[-1] if plan.segments else None
    if before and not answers and not before.logit_rows and before.tokens == last - first:
        plan.segments[-1] = PlannedSegment(
            before.tokens, 0, max(before.context, context), before.steps + 1, before.first_row,
            row_stride=before.tokens)
    else:
        plan.segments.append(PlannedSegment(last - first, len(answers), context, first_row=first,
                                            first_logit=len(plan.logit_row)))
    plan.logit_row += answers
