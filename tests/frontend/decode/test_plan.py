"""Plans of launches: every position once, in order, answered where its prompt ends."""

import random

import pytest

from frontend.decode.plan import Request, plan_launch


@pytest.mark.parametrize("seed", range(40))
def test_every_position_is_computed_once_and_each_prompt_answered(seed):
    rng = random.Random(seed)
    chunk = rng.choice([1, 4, 64])
    requests = []
    for _ in range(rng.randrange(1, 17)):
        prompt = rng.randrange(1, 200)
        requests.append(Request(prompt, rng.randrange(1, 5), rng.randrange(prompt)))
    plan = plan_launch(requests, chunk)
    *prefill, decode = plan.segments if any(r.max_new_tokens > 1 for r in requests) else (
        *plan.segments, None)
    computed, answered = [], []
    for segment in prefill:
        for step in range(segment.steps):
            first = segment.first_row + step * segment.row_stride
            assert 1 <= segment.tokens <= chunk
            rows = range(first, first + segment.tokens)
            places = [(plan.row_request[row], plan.row_position[row]) for row in rows]
            computed += places
            assert segment.context > max(position for _, position in places)
            assert not segment.row_advance and (segment.steps == 1 or not segment.logit_rows)
            logits = plan.logit_row[segment.first_logit:segment.first_logit + segment.logit_rows]
            answered += [places[row] for row in logits]
    assert computed == [(k, p) for k, r in enumerate(requests)
                        for p in range(r.cached, r.prompt_tokens)]
    assert answered == [(k, r.prompt_tokens - 1) for k, r in enumerate(requests)]
    if decode:
        going_on = [k for k, r in enumerate(requests) if r.max_new_tokens > 1]
        rows = range(decode.first_row, decode.first_row + decode.tokens)
        assert [plan.row_request[row] for row in rows] == going_on
        assert [plan.row_position[row] for row in rows] == [
            requests[k].prompt_tokens for k in going_on]
        assert decode.steps == max(requests[k].max_new_tokens for k in going_on) - 1
        assert (decode.row_stride, decode.row_advance) == (0, 1)
        assert plan.logit_row[decode.first_logit:] == list(range(len(going_on)))
