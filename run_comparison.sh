#!/usr/bin/env bash
# The norm comparison: train one masked autoencoder per method and seed, all alike but for the normalisation layer,
# then draw and tabulate them side by side.
#
#   ./run_comparison.sh --demo                          ten photographs, a small model, minutes on two cores
#   ./run_comparison.sh --imagenet_dir /data/ILSVRC     ImageNet, ViT-B/16, 100 epochs
#
# The same command again goes on where it stopped. With the word status among its options it counts which runs are
# done, running, failed, diverged and left. Options of this script:
#
#   --methods "A B ..."  normalisation layers: LayerNorm (ln), RMSNorm (rms), DynamicTanh (dyt),
#                        AdaptiveDynamicTanh (adyt), DynamicErf (derf); --norms is the same flag
#                        (default: LayerNorm DynamicTanh AdaptiveDynamicTanh). Options may be in the name:
#                        DynamicTanh-alpha1.0, AdaptiveDynamicTanh-lambda0.5-smooth0.99, also -min and -max
#   --control            one method more: DynamicTanh that starts at AdaptiveDynamicTanh's upper bound, with
#                        --dyt_alpha_init 2.0. Does the other adapt, or is it just that?
#   --adyt_lambda "A B ..." --adyt_smooth "A B ..."
#                        AdaptiveDynamicTanh once per value, as AdaptiveDynamicTanh-lambda<A> ...; with one value it is
#                        an option of train.py
#   --seeds "0 1 ..."    one run per method and seed (default: 0)
#   --output_dir DIR     results; runs are in DIR/<method>/seed<k> (default: ./output_comparison; demo: ./output_demo)
#   --checkpoint_dir DIR checkpoints, in DIR/<method>/seed<k> (default: the run's folder)
#   --eval "A B ..."     then evaluate every encoder, and beside it the same network with random weights: finetune,
#                        linprobe, knn; results are in DIR/<method>/seed<k>/<task> and .../untrained_<task>
#   --finetune_flags "..." --linprobe_flags "..."
#                        options of train.py for these evaluations, such as "--epochs 50 --batch_size 256"; of the
#                        others they get --overwrite and those on data, model, norm and device
#   --demo               demo data and settings; what is typed wins
#   --jobs J             J runs side by side, dealt over the visible GPUs or the cores (default: auto, which is 1, and with
#                        --demo where there is no GPU one a core, or all if less than two a core)
#   --nproc N            N processes a run, by torchrun; --batch_size is for each of them (default: 1)
#   --warm auto|off      runs of one process each share it, one after the other, so that Python and torch start once (auto,
#                        the default), or each has its own
#   --slurm "OPTIONS"    submit the runs to SLURM as an array job with these options of sbatch, and the analysis after it
#   --wandb              log the runs and the analysis to Weights & Biases, project $WANDB_PROJECT or mae-norm-comparison;
#   --wandb_project NAME likewise, to this project
#   --open               open the analysis's report.html in the browser
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
evals=
finetune_flags=
linprobe_flags=
clone_mae=
control=
lambdas=
smooths=
alpha_max=
dry_run=
train_flags=()
shared_flags=() # those of train_flags that evaluations get, too

TYPED=$(command_line "$0" "$@")
status=
while [ $# -gt 0 ]; do
    WORDS=1
    case ${1%%=*} in
    --methods | --norms | --norm) read_value "$@" && methods=$VALUE ;;
    --seeds | --seed) read_value "$@" && seeds=$VALUE ;;
    --output_dir) read_value "$@" && output_dir=$VALUE ;;
    --checkpoint_dir) read_value "$@" && checkpoint_dir=$VALUE ;;
    --eval) read_value "$@" && evals=${VALUE//,/ } ;;
    --finetune_flags) read_text "$@" && finetune_flags=$VALUE ;;
    --linprobe_flags) read_text "$@" && linprobe_flags=$VALUE ;;
    --demo | --overwrite)
        shared_flags+=("$1")
        train_flags+=("$1")
        [ "$1" = --overwrite ] || : "${output_dir:=./output_demo}"
        ;;
    --control) control=1 ;;
    --adyt_lambda) read_value "$@" && lambdas=${VALUE:- } ;;
    --adyt_smooth) read_value "$@" && smooths=${VALUE:- } ;;
    --imagenet_dir | --hf_dataset | --hf_config | --max_images | --num_workers | --cache | --model | --input_size | \
        --device | --precision | --compile | --dyt_alpha_init | --adyt_*)
        read_value "$@"
        [ "${1%%=*}" != --adyt_alpha_max ] || alpha_max=$VALUE
        shared_flags+=("${1%%=*}" "$VALUE")
        train_flags+=("${1%%=*}" "$VALUE")
        ;;
    --clone_mae) clone_mae=1 ;;
    --dry_run) dry_run=1 ;;
    status) status=1 ;;
    --help | -h)
        print_banner "${BASH_SOURCE[0]}"
        use_any_python
        exec "$PYTHON" "$KIT/train.py" --help
        ;;
    *) read_running_flag "$@" || train_flags+=("$1") ;;
    esac
    shift "$WORDS"
done
: "${output_dir:=./output_comparison}"

# vary FLAG VALUES: AdaptiveDynamicTanh once per value; a single value stays a flag, as typed.
vary() {
    case $2 in
    '') ;;
    *[![:space:]]*[[:space:]]*[![:space:]]*) names=$(grid_values "$1" "$2 -- $names") ;;
    *[![:space:]]*)
        shared_flags+=("$1" "$2")
        train_flags+=("$1" "$2")
        ;;
    *) grid_values "$1" "" ;; # says that it is empty
    esac
}

# method_flags METHOD: DynamicTanh-alpha2.0 -> --norm DynamicTanh --dyt_alpha_init 2.0, a word a line
method_flags() {
    local IFS=- piece
    for piece in $1; do
        case $piece in
        alpha*) printf '%s\n' --dyt_alpha_init "${piece#alpha}" ;;
        lambda*) printf '%s\n' --adyt_lambda "${piece#lambda}" ;;
        smooth*) printf '%s\n' --adyt_smooth "${piece#smooth}" ;;
        min*) printf '%s\n' --adyt_alpha_min "${piece#min}" ;;
        max*) printf '%s\n' --adyt_alpha_max "${piece#max}" ;;
        esac
    done
}

# Every run of the comparison, a command a line.
print_commands() {
    local seed method
    for seed in $seeds; do
        for method in $names; do
            print_run "$method" "$seed" "" ${train_flags[@]+"${train_flags[@]}"}
        done
    done
}

# Every evaluation of their encoders, pre-trained and untrained.
print_evaluations() {
    local seed method task
    for task in $evals; do
        for seed in $seeds; do
            for method in $names; do
                print_evaluation "/$task" --init "$output_dir/$method/seed$seed"
                print_evaluation "/untrained_$task" --init untrained
            done
        done
    done
}

print_evaluation() {
    # shellcheck disable=SC2046 # a list of words
    (set -f && print_run "$method" "$seed" "$1" --task "$task" "${@:2}" ${shared_flags[@]+"${shared_flags[@]}"} \
        $(flags_of "$task"))
}

flags_of() {
    case $1 in
    finetune) printf '%s\n' "$finetune_flags" ;;
    linprobe) printf '%s\n' "$linprobe_flags" ;;
    esac
}

# print_run METHOD SEED SUBFOLDER FLAG...: the method's own options come last, so they win
print_run() {
    local run=$1/seed$2$3
    # shellcheck disable=SC2046 # a list of words
    train_command --norm "${1%%-*}" --seed "$2" --output_dir "$output_dir/$run" \
        ${checkpoint_dir:+--checkpoint_dir "$checkpoint_dir/$run"} "${@:4}" $(method_flags "$1")
}

check_running_flags
use_wandb mae-norm-comparison
shared_flags+=(${wandb_flags[@]+"${wandb_flags[@]}"})
train_flags+=(${wandb_flags[@]+"${wandb_flags[@]}"})
if [ -n "$clone_mae" ]; then clone_mae; fi
if [ -n "$dry_run$status" ]; then use_any_python; else use_environment; fi
[ -z "$status" ] || show_status "$output_dir"
[ -z "$control" ] || methods="$methods DynamicTanh-alpha$(grid_values --adyt_alpha_max "${alpha_max:-2.0}")"
names=$(grid_values --methods "$methods")
vary --adyt_lambda "$lambdas"
vary --adyt_smooth "$smooths"
seeds=$(grid_values --seeds "$seeds")
[ -z "$evals" ] || evals=$(grid_values --eval "$evals")
if [ -n "$dry_run" ]; then
    print_commands
    print_evaluations
    exit
fi

# What is wrong with the flags or the data is wrong for every run: said once, before the first.
"$PYTHON" "$KIT/train.py" --dry_run ${train_flags[@]+"${train_flags[@]}"}
for task in $evals; do
    # shellcheck disable=SC2046 # a list of words
    (set -f && exec "$PYTHON" "$KIT/train.py" --dry_run --task "$task" --init untrained \
        ${shared_flags[@]+"${shared_flags[@]}"} $(flags_of "$task"))
done

run_and_analyse "commands${evals:+ evaluations}" "$output_dir" \
    "$PYTHON" "$KIT/analysis.py" comparison --output_dir "$output_dir"
