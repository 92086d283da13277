#!/usr/bin/env bash
# The norm comparison: train one masked autoencoder per method and seed, all alike but for the normalisation layer,
# then draw and tabulate them side by side.
#
#   ./run_comparison.sh --demo                          ten photographs, a small model, minutes on two cores
#   ./run_comparison.sh --imagenet_dir /data/ILSVRC     ImageNet, ViT-B/16, 100 epochs
#
# The same command again goes on where it stopped. Options of this script:
#
#   --methods "A B ..."  normalisation layers: LayerNorm (ln), RMSNorm (rms), DynamicTanh (dyt),
#                        AdaptiveDynamicTanh (adyt), DynamicErf (derf); --norms is the same flag
#                        (default: LayerNorm DynamicTanh AdaptiveDynamicTanh)
#   --seeds "0 1 ..."    one run per method and seed (default: 0)
#   --output_dir DIR     results; runs are in DIR/<method>/seed<k> (default: ./output_comparison; demo: ./output_demo)
#   --checkpoint_dir DIR checkpoints, in DIR/<method>/seed<k> (default: the run's folder)
#   --demo               demo data and settings; what is typed wins
#   --clone_mae          first clone upstream's MAE, patched, into mae beside this script; runs then train its model
#   --dry_run            print the commands and run nothing
#   --help               this text, then the options of train.py, which every other option goes to as it is
#
# PYTHON=/path/to/python chooses the interpreter; without it .venv is made here if the active one lacks a package.
# Exit codes: 0 all runs ended, 1 some failed (listed last), 2 bad input, 130 interrupted.

set -euo pipefail
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$KIT/maekit/drivers/env.sh"
. "$KIT/maekit/drivers/grid.sh"

methods="LayerNorm DynamicTanh AdaptiveDynamicTanh"
seeds=0
output_dir=
checkpoint_dir=
clone_mae=
dry_run=
train_flags=()

while [ $# -gt 0 ]; do
    WORDS=1
    case ${1%%=*} in
    --methods | --norms | --norm) read_value "$@" && methods=$VALUE ;;
    --seeds | --seed) read_value "$@" && seeds=$VALUE ;;
    --output_dir) read_value "$@" && output_dir=$VALUE ;;
    --checkpoint_dir) read_value "$@" && checkpoint_dir=$VALUE ;;
    --demo)
        train_flags+=(--demo)
        : "${output_dir:=./output_demo}"
        ;;
    --clone_mae) clone_mae=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
        print_banner "${BASH_SOURCE[0]}"
        use_any_python
        exec "$PYTHON" "$KIT/train.py" --help
        ;;
    *) train_flags+=("$1") ;;
    esac
    shift "$WORDS"
done
: "${output_dir:=./output_comparison}"

# Every run of the comparison, a command a line.
print_grid() {
    local seed method
    for seed in $seeds; do
        for method in $names; do
            command_line "$PYTHON" "$KIT/train.py" --norm "$method" --seed "$seed" \
                --output_dir "$output_dir/$method/seed$seed" \
                ${checkpoint_dir:+--checkpoint_dir "$checkpoint_dir/$method/seed$seed"} ${train_flags[@]+"${train_flags[@]}"}
        done
    done
}

if [ -n "$clone_mae" ]; then clone_mae; fi
if [ -n "$dry_run" ]; then use_any_python; else use_environment; fi
names=$(grid_values --methods "$methods")
seeds=$(grid_values --seeds "$seeds")
if [ -n "$dry_run" ]; then
    print_grid
    exit
fi

# What is wrong with the flags or the data is wrong for every run: said once, before the first.
"$PYTHON" "$KIT/train.py" --dry_run ${train_flags[@]+"${train_flags[@]}"}

run_and_analyse "$output_dir" "$PYTHON" "$KIT/analysis.py" comparison --output_dir "$output_dir"
