"""What a decoder holds beside its weights: sized for the largest step, refused in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from event_tensor.refusals import LIMITS, gigabytes, reserving
from event_tensor.tensors import TensorSpec
from frontend.graph.operators import Operators
from frontend.graph.tiles import ATTENTION_ROWS, MAX_KV_SPLITS
from persistent_runtime.formats import stored_bytes, tensor_bytes

Shapes = dict[TensorSpec, tuple[int, ...]]


def allocate_tensors(operators: Operators, buffers: Any) -> None:
    """KV cache for max_context, activations for the largest step, control tensors.

    buffers: those of the backend. Raises UserError where the system refuses the memory.
    """
    limits = operators.limits
    smaller = f"give a smaller --max-context or max_requests, or {LIMITS}"
    caches = largest_shapes(operators, list(operators.kv_caches.values()))
    allocate(caches, buffers, f"the KV cache: {{size}} for {limits.max_requests} requests of "
                              f"{limits.max_context} positions", smaller)
    others = [spec for spec in operators.tensors.values() if spec.role != "weight"]
    allocate(largest_shapes(operators, others), buffers, "activations: {size}", smaller)


def largest_shapes(operators: Operators, tensors: Sequence[TensorSpec]) -> Shapes:
    """Each tensor's shape in the step where it has most elements."""
    # steps of up to ATTENTION_ROWS rows may ask for every row's logits and may split the context
    steps = [{"tokens": operators.tiles.linear_rows, "logit_rows": ATTENTION_ROWS, "kv_splits": 1},
             {"tokens": ATTENTION_ROWS, "logit_rows": ATTENTION_ROWS, "kv_splits": MAX_KV_SPLITS}]
    return {spec: max((tuple(int(d.evaluate(step)) for d in spec.shape) for step in steps),
                      key=math.prod) for spec in tensors}


def allocate(shapes: Shapes, buffers: Any, what: str, remedy: str) -> None:
    """Memory for all of them; `what` has their size at {size}."""
    size = sum(stored_bytes(shape, spec.dtype) for spec, shape in shapes.items())
    with reserving(what.format(size=gigabytes(size)), remedy):
        for spec, shape in shapes.items():
            buffers.allocate(spec, shape)


def weight_gigabytes(operators: Operators) -> str:
    return gigabytes(sum(map(tensor_bytes, operators.weights.values())))
