#!/bin/sh
# The ring on a GPU: device tests first, each with a hard limit, then side-by-side timings and
# traces. Usage, in the repository's root: sh benchmarks/gpu_ring_try.sh OUTPUT_FOLDER [python]
set -e
out=${1:?give a folder for the results}
python=${2:-python}
mkdir -p "$out"
export PYTHONPATH=. PYTHONUNBUFFERED=1
timeout -k 5 240 "$python" -m pytest tests/test_ring_device.py -x -q -p no:cacheprovider
for shape in llama-3.2-1b qwen3-0.6b qwen3-8b; do
    timeout -k 5 300 "$python" benchmarks/gpu_variants.py --shape $shape --rounds 5 \
        --output "$out/ring_$shape.json" \
        --variant triton ring_pieces=0 \
        --variant ring ring_pieces=9 \
        --variant ring_fine ring_pieces=9 tile_columns=1 \
        --variant ring_large ring_pieces=9 tile_bytes=2097152 \
        --variant ring_l2 ring_pieces=9 prefetch_bytes=393216
done
