#!/bin/sh
# The ring on a GPU, every part with a hard limit. In the repository's root:
#   sh benchmarks/gpu_ring_try.sh test             device tests, the shortest first
#   sh benchmarks/gpu_ring_try.sh time SHAPE OUT   side-by-side timings and traces → OUT/ring_SHAPE.json
# PYTHON names the interpreter.
set -e
python=${PYTHON:-python}
export PYTHONPATH=. PYTHONUNBUFFERED=1
case $1 in
test)
    run="timeout -k 5 200 $python -m pytest tests/test_ring_device.py -x -q -p no:cacheprovider"
    $run -k 'qwen3-bfloat16 or missing'
    $run -k 'not qwen3-bfloat16 and not missing'
    ;;
time)
    mkdir -p "$3"
    timeout -k 5 400 "$python" benchmarks/gpu_variants.py --shape "$2" --rounds 5 \
        --output "$3/ring_$2.json" \
        --variant triton ring_pieces=0 \
        --variant ring ring_pieces=9 \
        --variant ring_fine ring_pieces=9 tile_columns=1 \
        --variant ring_large ring_pieces=9 tile_bytes=2097152 \
        --variant ring_l2 ring_pieces=9 prefetch_bytes=393216
    ;;
*)
    sed -n 2,5p "$0"
    exit 2
    ;;
esac
