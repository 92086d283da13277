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
#                        AdaptiveDynamicTanh (adyt), DynamicErf (derf), hardtanh, arctan, isru, softsign, satursin, expsign,
#                        relsign, saturlog, bhyt, none; --norms is the same flag
#                        (default: LayerNorm DynamicTanh AdaptiveDynamicTanh). Options may be in the name:
#                        DynamicTanh-alpha1.0, AdaptiveDynamicTanh-lambda0.5-smooth0.99, also -min and -max
#   --control            one method more per upper bound among the AdaptiveDynamicTanh: DynamicTanh that starts there,
#                        as DynamicTanh-alpha<bound>. Does the other adapt, or is it just that?
#   --reference METHOD   the method that the report holds the others against (default: LayerNorm)
#   --adyt_lambda "A B ..." and other options of norms
#                        every method of that norm once per value, as AdaptiveDynamicTanh-lambda<A> ...; with one value
#                        it is an option of train.py
#   --seeds "0 1 ..."    one run per method and seed (default: 0)
#   --lrs "A B ..."      every method at every one of these learning rates; the analysis shows the losses over them, each
#                        method at its best one, and all at the best one of the reference
#   --select_seeds "0 ..." more seeds, which choose the best rates and are in no difference: chosen on the seeds that it is
#                        reported on, a rate looks better than it is
#   --max_images "A B ..." every method with so many training images, all for all of them; all are validated alike, on all
#                        images; with one value it is an option of train.py
#   --output_dir DIR     results; runs are in DIR/<method>/seed<k>, of --max_images and --lrs in DIR/<method>/n<A>/lr<B>/seed<k>
#                        (default: ./output_comparison; demo: ./output_demo)
#   --checkpoint_dir DIR checkpoints, in folders of the same names (default: the run's folder)
#   --eval "A B ..."     then evaluate every encoder, and beside it the same network with random weights: finetune,
#                        linprobe, knn, or by another read-out finetune_cls, linprobe_mean, linprobe_attentive, knn_mean;
#                        results are in <A> and untrained_<A> in the run's folder
#   --finetune_flags "..." --linprobe_flags "..." --knn_flags "..."
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
#   --help               this text, then the options of train.py; one that is not listed here goes to every pre-training
#
# PYTHON=/path/to/python chooses the interpreter; without it .venv is made here if the active one lacks a package.
# Exit codes: 0 all runs ended, 1 some failed (listed last), 2 bad input, 130 interrupted.

set -euo pipefail
SELF=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}") # where a link to this script leads
KIT=$(unset CDPATH && cd "$(dirname "$SELF")" && pwd)
. "$KIT/maekit/drivers/env.sh"
. "$KIT/maekit/drivers/grid.sh"
. "$KIT/maekit/drivers/evaluations.sh"

methods="LayerNorm DynamicTanh AdaptiveDynamicTanh"
seeds=0
select_seeds=
rates=
own_rate=
sizes=
output_dir=
checkpoint_dir=
clone_mae=
control=
reference=
dry_run=
train_flags=()
shared_flags=() # those of train_flags that evaluations get, too
options=()      # those of norms; with several values each is a method per value

# pass_on FLAG ...: a flag of train.py to the runs, and to the evaluations if they get it, too.
pass_on() {
    read_train_flag "$@"
    [ "$KIND" != shared_option ] || options+=("${FLAG[@]}")
    case $KIND-$VALUE in
    shared_option-*[![:space:]]*[[:space:]]*[![:space:]]*) return ;; # several values: a method each, see values.py
    shared_*) shared_flags+=("${FLAG[@]}") ;;
    esac
    train_flags+=("${FLAG[@]}")
}

TYPED=$(command_line "$0" "$@")
status=
while [ $# -gt 0 ]; do
    WORDS=1
    case ${1%%=*} in
    --methods | --norms | --norm) read_value "$@" && methods=$VALUE ;;
    --seeds | --seed) read_value "$@" && seeds=$VALUE ;;
    --select_seeds) read_value "$@" && select_seeds=$VALUE ;;
    --lrs) read_value "$@" && rates=$VALUE ;;
    --lr) own_rate=$1 && pass_on "$@" ;;
    --max_images)
        read_value "$@"
        case $VALUE in
        *[![:space:]]*[[:space:]]*[![:space:]]*) sizes=$VALUE ;;
        *) pass_on "$@" ;;
        esac
        ;;
    --output_dir) read_value "$@" && output_dir=$VALUE ;;
    --checkpoint_dir) read_value "$@" && checkpoint_dir=$VALUE ;;
    --control) control=yes ;;
    --reference) read_value "$@" && reference=$VALUE && analysis_flags+=(--reference "$VALUE") ;;
    --demo) : "${output_dir:=./output_demo}" && pass_on "$@" ;;
    --clone_mae) clone_mae=1 ;;
    --dry_run) dry_run=1 ;;
    status) status=1 ;;
    --help | -h)
        print_banner "${BASH_SOURCE[0]}"
        use_any_python
        exec "$PYTHON" "$KIT/train.py" --help
        ;;
    *) read_running_flag "$@" || read_evaluation_flag "$@" || pass_on "$@" ;;
    esac
    shift "$WORDS"
done
: "${output_dir:=./output_comparison}"

# for_each "SEEDS" COMMAND: do it for every run of the grid of these seeds, with its seed, size, rate, method, and the method's
# own options; its argument is the run's folder.
for_each() {
    local seed size rate method own where
    for seed in $1; do
        for size in ${sizes:-every}; do
            for rate in ${rates:-own}; do
                while read -r method own; do
                    where=$method
                    [ "$size" = every ] || where=$where/n$size
                    [ "$rate" = own ] || where=$where/lr$rate
                    "$2" "$where/seed$seed"
                done <<<"$methods"
            done
        done
    done
}

# Every run of the comparison, a command a line.
print_commands() {
    for_each "$select_seeds $seeds" print_pretraining
}

print_pretraining() {
    local flags=()
    [ "$rate" = own ] || flags+=(--lr "$rate")
    print_run "$1" ${train_flags[@]+"${train_flags[@]}"} ${flags[@]+"${flags[@]}"}
}

# Every evaluation of their encoders, pre-trained and untrained, but of the seeds that choose rates.
print_evaluations() {
    local task
    for task in $evals; do
        for_each "$seeds" print_both
    done
}

print_both() {
    print_evaluation "$1/$task" --init "$output_dir/$1"
    case " $rates " in # random weights know no rate: evaluated beside the first
    "  " | " $rate "*) print_evaluation "$1/untrained_$task" --init untrained ;;
    esac
}

print_evaluation() {
    # shellcheck disable=SC2046 # a list of words
    (set -f && print_run "$1" $(task_of "$task") "${@:2}" ${shared_flags[@]+"${shared_flags[@]}"} $(flags_of "$task"))
}

# set_images: those of a size of for_each as flags, in images; all sizes are validated alike, unless flags after them say how
set_images() {
    case $size in every | all) images=() ;; *) images=(--max_val_images all --max_images "$size") ;; esac
}

# print_run FOLDER FLAG...: of the run of for_each; the method's own options come last, so they win
print_run() {
    local images
    set_images
    # shellcheck disable=SC2086 # a list of words
    train_command --norm "${method%%-*}" --seed "$seed" --output_dir "$output_dir/$1" \
        ${checkpoint_dir:+--checkpoint_dir "$checkpoint_dir/$1"} ${images[@]+"${images[@]}"} "${@:2}" $own
}

check_running_flags
use_wandb mae-norm-comparison
shared_flags+=(${wandb_flags[@]+"${wandb_flags[@]}"})
train_flags+=(${wandb_flags[@]+"${wandb_flags[@]}"})
if [ -n "$clone_mae" ]; then clone_mae; fi
if [ -n "$dry_run$status" ]; then use_any_python; else use_environment; fi
[ -z "$status" ] || show_status "$output_dir"
# a method a line: its name, and its options as flags of train.py
methods=$(ask values --methods "$methods" --control "$control" --reference "$reference" ${options[@]+"${options[@]}"})
seeds=$(ask values --seeds "$seeds")
[ -z "$rates" ] || rates=$(ask values --lrs "$rates")
[ -z "$rates" ] || [ -z "$own_rate" ] || fail "--lrs $rates: and --lr as well. Leave one of them out."
[ -z "$sizes" ] || sizes=$(ask values --max_images "$sizes")
if [ -n "$select_seeds" ]; then
    [ -n "$rates" ] || fail "--select_seeds $select_seeds: there is nothing to choose. Add --lrs."
    select_seeds=$(ask values --select_seeds "$select_seeds" --seeds "$seeds")
    analysis_flags+=(--select_seeds "$select_seeds")
fi
[ -z "$evals" ] || evals=$(ask values --eval "$evals")
commands=$(print_commands && print_evaluations)
check_commands "$commands"
if [ -n "$dry_run" ]; then
    printf '%s\n' "$commands"
    exit
fi

# What is wrong with the data is wrong for every run of a number of images: said once, before the first.
for size in ${sizes:-every}; do
    set_images
    check_data ${images[@]+"${images[@]}"} ${train_flags[@]+"${train_flags[@]}"}
done
for task in $evals; do check_evaluation "$task"; done

run_and_analyse "commands${evals:+ evaluations}" "$output_dir" \
    "$PYTHON" "$KIT/analysis.py" comparison --output_dir "$output_dir"
