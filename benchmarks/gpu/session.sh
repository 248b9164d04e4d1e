#!/bin/sh
# All that a GPU is needed for, part by part, each with a hard limit; a part that fails does not
# keep the next from running. In the repository's root:
#   sh benchmarks/gpu/session.sh OUT [PART …]
# Parts, by default the first four:
#   tests     device tests, those of the ring last                               4 minutes at most
#   ring      weights through the ring or not: timings and traces of two shapes  5 minutes
#   decode    published shapes beside PyTorch under CUDA graphs                  6 minutes
#   sanitize  memcheck and racecheck over a small model                          3 minutes
#   compiled  as decode, with torch.compile                                      9 minutes
#   costs     of one dependency                                                  2 minutes
# Results and logs go to OUT. PYTHON names the interpreter, EVENT_TENSOR_COMMIT the commit where
# there is no git.
out=${1:?say where results go}
mkdir -p "$out" || exit 2
shift
python=${PYTHON:-python3}
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

run() { # NAME SECONDS COMMAND …: its output goes to OUT/NAME.log, the end of it here as well
    name=$1 limit=$2 began=$(date +%s)
    shift 2
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "== $name: exit $code after $(($(date +%s) - began)) s"
    tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
}

part() {
    case $1 in
    tests)
        run tests 150 "$python" -m pytest -m gpu \
            tests/persistent_runtime/gpu/test_gpu_device.py tests/frontend/report/test_bench.py \
            -n 8 -q -o faulthandler_timeout=60 -p no:cacheprovider
        run tests_ring 90 "$python" -m pytest -m gpu \
            tests/persistent_runtime/gpu/test_ring_device.py \
            -v -o faulthandler_timeout=30 -p no:cacheprovider
        ;;
    ring)
        run ring_1b 170 "$python" benchmarks/gpu/variants.py --shape llama-3.2-1b --rounds 5 \
            --output "$out/gpu_variants_ring_1b.json" \
            --variant triton ring_pieces=0 \
            --variant ring ring_pieces=9 \
            --variant ring_fine ring_pieces=9 tile_columns=1
        run ring_8b 130 "$python" benchmarks/gpu/variants.py --shape qwen3-8b --rounds 5 \
            --output "$out/gpu_variants_ring_8b.json" \
            --variant triton ring_pieces=0 \
            --variant ring ring_pieces=9
        ;;
    decode)
        run decode 360 "$python" benchmarks/gpu/decode.py --rounds 5 --no-compile \
            --output "$out/gpu_decode.json"
        ;;
    sanitize)
        for tool in memcheck racecheck; do
            for pieces in 0 8; do
                run "${tool}_$pieces" 45 compute-sanitizer --tool $tool --error-exitcode 9 \
                    "$python" benchmarks/gpu/small.py --pieces $pieces
            done
        done
        ;;
    compiled)
        run compiled 540 "$python" benchmarks/gpu/decode.py --rounds 5 --contexts 128 \
            --output "$out/gpu_decode_compiled.json"
        ;;
    costs)
        run dependency 90 "$python" benchmarks/protocol/dependency.py --backend cuda \
            --output "$out/dependency_gpu.json"
        ;;
    *)
        echo "unknown part $1" >&2
        exit 2
        ;;
    esac
}

[ $# -gt 0 ] || set -- tests ring decode sanitize
for name in "$@"; do
    part "$name"
done
