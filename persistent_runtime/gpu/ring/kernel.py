"""What a ring adds to a kernel: its schedules say which pieces each row uses up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from event_tensor.graph import Graph
from persistent_runtime.function_table import Variant
from persistent_runtime.gpu.ring.pieces import streamed_calls, with_streams
from persistent_runtime.launch.launch import Kernel
from persistent_runtime.rows.encode import ArgumentEncoder, EncodedSchedule


class RingKernel(Kernel):
    """ring_pieces: slots of the ring, 0 for none. configured: each entry of the function table →
    its configuration, whose `ring` says whether that body reads its weights there."""

    ring_pieces: int
    configured: Mapping[Variant, Any]

    def streamed_calls(self, graph: Graph, bindings: Mapping[str, int]) -> tuple[int, ...]:
        if not self.ring_pieces:  # asked for every segment of a launch
            return ()
        share = self.kinds.calls(graph.calls)
        return streamed_calls((call for of, each in self.configured.items()
                               if getattr(each, "ring", 0) for call in share[of]), bindings)

    def with_streams(self, encoded: EncodedSchedule, arguments: ArgumentEncoder,
                     calls: Sequence[int]) -> EncodedSchedule:
        return with_streams(encoded, arguments, calls) if self.ring_pieces else encoded
