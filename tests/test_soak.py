"""A few seconds of benchmarks/soak.py: what a request leaves behind would show."""

from benchmarks.soak import soak
from frontend.compile import compile_decode_loop

LARGEST_GROWTH_MB = 2.0  # over some hundred launches


def test_memory_does_not_grow_with_requests():
    decoder = compile_decode_loop("demo", workers=1)
    soak(decoder, 1.0, seed=1)  # every shape's schedule is made once
    result = soak(decoder, 4.0)
    assert result["rounds"] >= 10 and result["compilations"] == 1
    assert result["memory_growth_mb"] < LARGEST_GROWTH_MB
    assert {"seconds", "rss_mb", "tpot_ms"} == set(result["over_time"][0])
