#!/usr/bin/env bash
# The reconstruction gap: train loss = reconstruction + alpha x classification over alphas of both signs, and draw
# accuracy against reconstruction.
#
#   ./run_alpha_sweep.sh --demo                     ten photographs, a small model
#   ./run_alpha_sweep.sh                            Imagenette, vit_tiny, 25 alphas, 50 epochs
#   ./quick_sweep_test.sh, ./lr_alpha_sweep.sh      the same with fewer alphas and epochs
#
# The same command again skips what is done and goes on where it stopped. With the word status among its options it
# counts which runs are done, running, failed, diverged and left. Options of this script:
#
#   --alphas "A B ..."   weights of the classification loss (default: 25 of both signs, 0.00001 to 10, and 0)
#   --lrs "A B ..."      peak learning rates (default: 0.00015; demo: the demo's)
#   --norms "A B ..."    normalisation layers, see run_comparison.sh (default: LayerNorm)
#   --seeds "0 1 ..."    one run per learning rate, alpha, norm and seed (default: 0); three give an interval
#   --epochs N           length of each run (default: 50)
#   --batch_size N       images per forward pass (default: $BATCH_SIZE, else 512; demo: the demo's)
#   --num_workers N      processes that decode images (default: $NUM_WORKERS, else 16, at most the cores there are)
#   --model NAME         (default: vit_tiny; demo: the demo's), --decoder_type NAME (default: base-8b; demo: the model's)
#   --probes NAMES       accuracies to score (default: all)
#   --eval "A B ..."     then evaluate every encoder: decoder, a new decoder trained on the frozen encoder, or what
#                        run_comparison.sh has, such as knn or linprobe_mean; and once for each norm and seed, of decoders
#                        and rate, the same network with random weights. Results are in the run's folder, and in untrained
#   --finetune_flags "..." --linprobe_flags "..." --knn_flags "..."
#                        options of train.py for these evaluations, as of run_comparison.sh
#   --imagenet_dir DIR   a folder with train/ and val/, such as ImageNet's, in place of the hub's frgfm/imagenette;
#   --hf_dataset NAME    likewise, another data set of the hub
#   --output_dir DIR     everything goes below it (default: outputs), runs into <data>-mae-reconstruction-gap/<name>: <data>
#                        is imagenette, demo, or the last part of the folder's or data set's name
#   --checkpoint_dir DIR checkpoints go below it (default: checkpoints/<name> in --output_dir, of other data than
#                        Imagenette checkpoints/<data>-<name>)
#   --name NAME          name of the sweep in the names of folders (default: full)
#   --jobs J             J runs side by side, dealt over the visible GPUs or the cores (default: auto, which is 1, and with
#                        --demo where there is no GPU one a core, or all if less than two a core)
#   --nproc N            N processes a run, by torchrun; --batch_size is for each of them (default: 1)
#   --warm auto|off      runs of one process each share it, one after the other, so that Python and torch start once (auto,
#                        the default), or each has its own
#   --slurm "OPTIONS"    submit the runs to SLURM as an array job with these options of sbatch, and the analysis after it
#   --wandb              log the runs and the analysis to Weights & Biases, project $WANDB_PROJECT, else
#                        mae-reconstruction-gap-manual-probes (quick), -lr-sweep or -full-sweep
#   --wandb_project NAME likewise, to this project
#   --open               open the analysis's report.html in the browser
#   --clone_mae          first clone upstream's MAE, patched, into mae beside this script; runs then train its model
#   --demo               demo data and settings; alphas and epochs stay the sweep's; what is typed wins
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

alphas="-10.0 -5.0 -2.0 -1.0 -0.5 -0.1 -0.05 -0.01 -0.005 -0.001 -0.0001 -0.00001"
alphas="$alphas 0.0 0.00001 0.0001 0.001 0.005 0.01 0.05 0.1 0.5 1.0 2.0 5.0 10.0"
lrs=default
norms=LayerNorm
seeds=0
length=(--epochs 50)
batch_size=${BATCH_SIZE:-}
num_workers=${NUM_WORKERS:-}
model=
decoder_type=
probes=all
output_dir=outputs
checkpoint_dir=
name=full
demo=
clone_mae=
data_flags=(--hf_dataset frgfm/imagenette --hf_config 320px)
dry_run=
help=
train_flags=()
shared_flags=() # those of train_flags that evaluations get, too

pass_on() {
    read_train_flag "$@"
    case $KIND in shared_*) shared_flags+=("${FLAG[@]}") ;; esac
    train_flags+=("${FLAG[@]}")
}

TYPED=$(command_line "$0" "$@")
status=
while [ $# -gt 0 ]; do
    WORDS=1
    case ${1%%=*} in
    --alphas | --alpha) read_value "$@" && alphas=$VALUE ;;
    --lrs | --lr) read_value "$@" && lrs=$VALUE ;;
    --norms | --norm | --methods) read_value "$@" && norms=$VALUE ;;
    --seeds | --seed) read_value "$@" && seeds=$VALUE ;;
    --epochs | --steps) read_value "$@" && length=("${1%%=*}" "$VALUE") ;; # the last of them
    --batch_size) read_value "$@" && batch_size=$VALUE ;;
    --num_workers) read_value "$@" && num_workers=$VALUE ;;
    --model) read_value "$@" && model=$VALUE ;;
    --decoder_type) read_value "$@" && decoder_type=$VALUE ;;
    --probes) read_value "$@" && probes=$VALUE ;;
    --output_dir) read_value "$@" && output_dir=$VALUE ;;
    --checkpoint_dir) read_value "$@" && checkpoint_dir=$VALUE ;;
    --name) read_value "$@" && name=$VALUE ;;
    --demo) demo=$1 ;;
    --clone_mae) clone_mae=1 ;;
    --dry_run) dry_run=1 ;;
    status) status=1 ;;
    --help | -h) help=1 ;;
    --imagenet_dir | --hf_dataset) data_flags=() && pass_on "$@" ;;
    *) read_running_flag "$@" || read_evaluation_flag "$@" || pass_on "$@" ;;
    esac
    shift "$WORDS"
done
[ -n "$output_dir" ] || fail "--output_dir: is empty. Leave it out for outputs."
[ -n "$name" ] || fail "--name: is empty. Leave it out for full."

if [ -n "$clone_mae" ] && [ -z "$help" ]; then clone_mae; fi
check_running_flags
case $name in
quick) use_wandb mae-reconstruction-gap-manual-probes ;;
*) use_wandb "mae-reconstruction-gap-$name-sweep" ;;
esac
train_flags+=(${wandb_flags[@]+"${wandb_flags[@]}"})
if [ -n "$dry_run$help$status" ]; then use_any_python; else use_environment; fi
if [ -n "$help" ]; then
    print_banner "${BASH_SOURCE[0]}"
    echo "Here: --name $name --alphas \"$alphas\" --lrs \"$lrs\" ${length[*]}"
    echo
    exec "$PYTHON" "$KIT/train.py" --help
fi

# What is the same in every run. With --demo, what was not typed is left to train.py's --demo.
if [ -n "$demo" ]; then
    data_flags=("$demo")
    [ "$lrs" != default ] || lrs=$(ask values --demo lr)
else
    [ "$lrs" != default ] || lrs=1.5e-4
    : "${batch_size:=512}" "${model:=vit_tiny}" "${decoder_type:=base-8b}"
    : "${num_workers:=$(ask values --workers 16)}"
fi
# Runs of other data are elsewhere, and so are their checkpoints, in a typed --checkpoint_dir as well.
data=$(ask sweep_data "$output_dir" "$name" ${data_flags[@]+"${data_flags[@]}"} ${train_flags[@]+"${train_flags[@]}"})
root=$output_dir/$data-mae-reconstruction-gap/$name
case $data in
imagenette) sweep=$name own='' ;;
demo) sweep=demo-$name own='' ;;
*) sweep=$data-$name own=/$data ;;
esac
[ -z "$status" ] || show_status "$root"
for flag in batch_size num_workers model decoder_type; do
    [ -z "${!flag}" ] || train_flags+=("--$flag" "${!flag}")
done
for flag in num_workers model; do
    [ -z "${!flag}" ] || shared_flags+=("--$flag" "${!flag}")
done
shared_flags=(${data_flags[@]+"${data_flags[@]}"} ${shared_flags[@]+"${shared_flags[@]}"})
decoder_flags=(${data_flags[@]+"${data_flags[@]}"} "${length[@]}" ${train_flags[@]+"${train_flags[@]}"})
train_flags=(${data_flags[@]+"${data_flags[@]}"} "${length[@]}" --probes "$probes"
    ${train_flags[@]+"${train_flags[@]}"})
checkpoint_dir=${checkpoint_dir:+$checkpoint_dir$own}
: "${checkpoint_dir:=$output_dir/checkpoints/$sweep}"
architecture=${model:-demo}${decoder_type:+_$decoder_type}

lists=$(ask values --alphas "$alphas" --lrs "$lrs" --norms "$norms" --seeds "$seeds")
{ read -r alphas && read -r lrs && read -r norms && read -r seeds; } <<<"$lists"
[ -z "$evals" ] || evals=$(ask values --sweep_eval "$evals")

# Every run of the sweep, a command a line.
print_commands() {
    local lr alpha norm seed run
    for lr in $lrs; do
        for alpha in $alphas; do
            for norm in $norms; do
                for seed in $seeds; do
                    run=${norm}_lr${lr}_seed${seed}
                    train_command --alpha "$alpha" --lr "$lr" --norm "$norm" --seed "$seed" \
                        --output_dir "$root/$alpha/$run" \
                        --checkpoint_dir "$checkpoint_dir/${architecture}_alpha-${alpha}_$run" \
                        "${train_flags[@]}"
                done
            done
        done
    done
}

# Every evaluation of their encoders, and of untrained ones.
print_evaluations() {
    local lr alpha norm seed task
    for task in $evals; do
        for norm in $norms; do
            for seed in $seeds; do
                [ "$task" = decoder ] || print_evaluation "untrained/${norm}_seed${seed}" untrained
                for lr in $lrs; do
                    [ "$task" != decoder ] || print_evaluation "untrained/${norm}_lr${lr}_seed${seed}" untrained
                    for alpha in $alphas; do print_evaluation "$alpha/${norm}_lr${lr}_seed${seed}"; done
                done
            done
        done
    done
}

# print_evaluation RUN [untrained]: of the loops' task, norm, learning rate and seed
print_evaluation() {
    local init=${2:-$root/$1} place=${1/\//_}/$task
    case $place in untrained*) ;; *) place=alpha-$place ;; esac
    set -- --norm "$norm" --seed "$seed" --init "$init" --output_dir "$root/$1/$task" \
        --checkpoint_dir "$checkpoint_dir/${architecture}_$place"
    case $task in
    decoder) train_command --lr "$lr" "${decoder_flags[@]}" --freeze encoder "$@" ;;
    *)
        # shellcheck disable=SC2046 # a list of words
        (set -f && train_command $(task_of "$task") "$@" ${shared_flags[@]+"${shared_flags[@]}"} $(flags_of "$task"))
        ;;
    esac
}

commands=$(print_commands && print_evaluations)
check_commands "$commands"
if [ -n "$dry_run" ]; then
    printf '%s\n' "$commands"
    exit
fi

# What is wrong with the data is wrong for every run: said once, before the first.
for alpha in $alphas; do [ "$alpha" = 0.0 ] || break; done
check_data --alpha "$alpha" "${train_flags[@]}"
for task in $evals; do
    case $task in
    decoder) check_data "${decoder_flags[@]}" --freeze encoder --init untrained ;;
    *) check_evaluation "$task" ;;
    esac
done

run_and_analyse "commands${evals:+ evaluations}" "$root" "$PYTHON" "$KIT/analysis.py" gap --log_dir "$root" --output_dir "$output_dir/analysis_$sweep"
