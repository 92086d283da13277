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
#   --demo               demo data and settings; what is typed wins
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
dry_run=
train_flags=()

while [ $# -gt 0 ]; do
    flag=${1%%=*}
    case $flag in
    --methods | --norms | --norm | --seeds | --seed | --output_dir)
        if [ "$flag" = "$1" ]; then
            value=${2---}
            [ "${value#--}" = "$value" ] || fail "$flag: needs a value. See $0 --help."
            shift
        else
            value=${1#*=}
        fi
        case $flag in
        --seed*) seeds=$value ;;
        --output_dir) output_dir=$value ;;
        *) methods=$value ;;
        esac
        ;;
    --demo)
        train_flags+=(--demo)
        : "${output_dir:=./output_demo}"
        ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        use_any_python
        exec "$PYTHON" "$KIT/train.py" --help
        ;;
    *) train_flags+=("$1") ;;
    esac
    shift
done
: "${output_dir:=./output_comparison}"
[ -n "${seeds// /}" ] || fail "--seeds: is empty. Try --seeds 0, or --seeds \"0 1 2\"."

# Every run of the comparison, a command a line.
print_grid() {
    local seed method
    for seed in $seeds; do
        for method in $names; do
            command_line "$PYTHON" "$KIT/train.py" --norm "$method" --seed "$seed" \
                --output_dir "$output_dir/$method/seed$seed" ${train_flags[@]+"${train_flags[@]}"}
        done
    done
}

if [ -n "$dry_run" ]; then use_any_python; else use_environment; fi
# shellcheck disable=SC2086 # the lists are split on purpose
names=$(PYTHONPATH=$KIT "$PYTHON" -m maekit.drivers.methods $methods)
if [ -n "$dry_run" ]; then
    print_grid
    exit
fi

# What is wrong with the flags or the data is wrong for every run: said once, before the first.
"$PYTHON" "$KIT/train.py" --dry_run ${train_flags[@]+"${train_flags[@]}"}

grid=$output_dir/commands.txt
{ mkdir -p "$output_dir" && print_grid >"$grid"; } 2>/dev/null ||
    fail "--output_dir $output_dir: cannot be written. Choose another --output_dir."
run_grid "$grid"
code=0
"$PYTHON" "$KIT/analysis.py" comparison --output_dir "$output_dir" || code=$?
if [ -n "$FAILURES" ]; then
    printf '\nfailed; the same command tries again:\n%s' "$FAILURES" >&2
    exit 1
fi
exit "$code"
