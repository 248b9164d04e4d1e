"""A few seconds of benchmarks/cpu/soak.py: what a request leaves behind would show."""

import gc
from collections import deque
from itertools import islice

from benchmarks.cpu.soak import requests, rss_mb, soak
from frontend.compile import compile_decode_loop

LARGEST_GROWTH_MB = 1.0  # over some hundred launches


def test_the_same_requests_again_need_no_more_memory():
    decoder = compile_decode_loop("demo", workers=1)
    held = []
    for _ in range(3):  # every shape's schedule is made in the first pass
        deque(islice(requests(decoder, seed=0), 16), maxlen=0)
        gc.collect()
        held.append(rss_mb())
    assert held[2] - held[1] < LARGEST_GROWTH_MB
    assert decoder.compilations == 1


def test_the_record_of_a_soak():
    result = soak(compile_decode_loop("demo", workers=1), 0.0)
    assert result["rounds"] == len(result["over_time"]) == 10
    assert {"memory_grew", "tpot_drifted"} < set(result) and result["compilations"] == 1
    assert {"seconds", "rss_mb", "tpot_ms"} == set(result["over_time"][0])
