#!/usr/bin/env bash
# What drivers have in common that go on from encoders to their evaluations. Comes after grid.sh.
# shellcheck disable=SC2034,SC2154 # variables that are the drivers'

evals=
finetune_flags=
linprobe_flags=
knn_flags=

# read_evaluation_flag FLAG ...: the options on evaluations. Sets WORDS; 1 if it is none of them.
read_evaluation_flag() {
    case ${1%%=*} in
    --eval) read_value "$@" && evals=${VALUE//,/ } ;;
    --finetune_flags) read_text "$@" && finetune_flags=$VALUE ;;
    --linprobe_flags) read_text "$@" && linprobe_flags=$VALUE ;;
    --knn_flags) read_text "$@" && knn_flags=$VALUE ;;
    *) return 1 ;;
    esac
}

# task_of NAME: flags of train.py; knn_mean is k-NN with the read-out mean, knn with the task's own.
task_of() {
    printf '%s\n' --task "${1%%_*}"
    case $1 in *_*) printf '%s\n' --readout "${1#*_}" ;; esac
}

# flags_of NAME: those that were typed for a task.
flags_of() {
    case ${1%%_*} in
    finetune) printf '%s\n' "$finetune_flags" ;;
    linprobe) printf '%s\n' "$linprobe_flags" ;;
    knn) printf '%s\n' "$knn_flags" ;;
    esac
}

# check_evaluation NAME: exit code 2 if the data are not enough for it.
check_evaluation() {
    # shellcheck disable=SC2046 # a list of words
    (set -f && check_data $(task_of "$1") --init untrained ${shared_flags[@]+"${shared_flags[@]}"} $(flags_of "$1"))
}
