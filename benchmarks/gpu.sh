#!/usr/bin/env bash
# All benchmarks on one GPU, in under 9 minutes and without a network, into one JSON file with the machine's name:
#
#   benchmarks/gpu.sh                         # writes benchmarks/results/<machine>.json
#   benchmarks/gpu.sh --cpu                   # CPU mode: small sizes, to see that everything works
#
# MAE_DIR=DIR    upstream's clone, for the comparison with its loop; default: mae beside the scripts, if it is there
# RESULTS=DIR    where the JSON file goes
# IMAGES=DIR     ILSVRC or class folders of full-size JPEGs for bench_data.py and bench_sweep.py; default: photographs it makes itself

set -euo pipefail
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$KIT"
PYTHON=${PYTHON:-python3}
results=${RESULTS:-$KIT/benchmarks/results}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

bench() { # NAME ARGUMENTS: one benchmark; another one's failure does not stop the rest
    local name=$1
    shift
    echo "--- bench_$name.py $*"
    "$PYTHON" "benchmarks/bench_$name.py" "$@" --json "$scratch/$name.json" || failed=1
}

mae=()
[ -z "${MAE_DIR:-}" ] || mae=(--mae_dir "$MAE_DIR")
images=()
[ -z "${IMAGES:-}" ] || images=(--imagenet_dir "$IMAGES")

if [ "${1:-}" = --cpu ]; then
    bench norms --device cpu --widths 192 --batch 4 --seconds 0.1 --no_compile
    bench data ${images[@]+"${images[@]}"} --images 64 --rounds 1
    bench train --device cpu --model mae_vit_demo_patch8 --batch_size 16 --steps 2 --seconds 0.1 ${mae[@]+"${mae[@]}"}
    bench sweep --device cpu --demo --max_images 128
else
    bench norms --device cuda --seconds 0.2
    bench data ${images[@]+"${images[@]}"}
    bench train --device cuda --compile on --seconds 4 ${mae[@]+"${mae[@]}"}
    if [ -n "${IMAGES:-}" ]; then
        bench sweep --device cuda --imagenet_dir "$IMAGES"
    else
        bench sweep --device cuda --demo
    fi
fi

"$PYTHON" benchmarks/report.py --gather "$results" "$scratch"/*.json
exit $failed
