#!/usr/bin/env bash
# All benchmarks on one GPU, in under 9 minutes and without a network, into one JSON file with the machine's name:
#
#   benchmarks/gpu.sh                         # writes benchmarks/results/<machine>.json
#   benchmarks/gpu.sh --cpu                   # CPU mode: small sizes, to see that everything works
#
# Each has a limit of its own, prints as soon as something is known, and keeps no other from its turn.
#
# MAE_DIR=DIR    upstream's clone, for the comparison with its loop; default: mae beside the scripts, if it is there
# RESULTS=DIR    where the JSON file goes
# IMAGES=DIR     ILSVRC or class folders of full-size JPEGs; default: as many as Imagenette's, made of the demo's photographs

set -euo pipefail
KIT=$(unset CDPATH && cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$KIT"
PYTHON=${PYTHON:-python3}
results=${RESULTS:-$KIT/benchmarks/results}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

bench() { # SECONDS NAME ARGUMENTS: one benchmark; another one's failure does not stop the rest
    local seconds=$1 name=$2
    shift 2
    echo "--- bench_$name.py $*"
    if command -v timeout >/dev/null; then set -- timeout "$seconds" "$PYTHON" "benchmarks/bench_$name.py" "$@"; else
        set -- "$PYTHON" "benchmarks/bench_$name.py" "$@" # macOS has none
    fi
    "$@" --json "$scratch/$name.json" || failed=1
}

mae=()
[ -z "${MAE_DIR:-}" ] || mae=(--mae_dir "$MAE_DIR")
images=${IMAGES:-$scratch/photos}

if [ "${1:-}" = --cpu ]; then
    [ -n "${IMAGES:-}" ] || "$PYTHON" benchmarks/photos.py "$images" 80 40
    bench 600 norms --device cpu --widths 192 --batch 4 --seconds 0.1 --no_compile
    bench 600 data ${IMAGES:+--imagenet_dir "$IMAGES"} --images 64 --rounds 1
    bench 600 train --device cpu --model mae_vit_demo_patch8 --batch_size 16 --steps 2 --seconds 0.1 ${mae[@]+"${mae[@]}"}
    bench 600 steps --device cpu --demo --batch_sizes 16 --variants eager --steps 1
    bench 600 phases --device cpu --runs 1 --demo --epochs 1 --max_images 64 --batch_size 32 --probes all --num_workers 0
    bench 600 sweep --device cpu --demo --max_images 128
else
    [ -n "${IMAGES:-}" ] || "$PYTHON" benchmarks/photos.py "$images" 9469 3925
    bench 100 sweep --device cuda --imagenet_dir "$images" --num_workers 8
    bench 100 steps --device cuda --imagenet_dir "$images" --variants eager "compiled, graph" --seconds 80
    bench 130 train --device cuda --cases 2 --norms LayerNorm DynamicTanh --seconds 1 ${mae[@]+"${mae[@]}"}
    bench 70 norms --device cuda --widths 768 512 192 --seconds 0.1 --no_compile
    bench 60 phases --device cuda --runs 2 --imagenet_dir "$images" --model vit_tiny --decoder_type base-8b \
        --batch_size 512 --lr 1.5e-4 --probes all --epochs 6 --num_workers 8
    bench 60 data ${IMAGES:+--imagenet_dir "$IMAGES"} # without: photographs so large that the cache reduces them
fi

"$PYTHON" benchmarks/report.py --gather "$results" "$scratch"/*.json
exit $failed
