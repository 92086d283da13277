#!/usr/bin/env bash
# A grid is a file of commands, one a line, written down before the first one runs.

# read_value --flag=value | --flag value: the value into VALUE, how many words it took into WORDS.
# shellcheck disable=SC2034 # both are the caller's
read_value() {
    WORDS=1
    case $1 in
    *=*) VALUE=${1#*=} ;;
    *)
        VALUE=${2---}
        [ "${VALUE#--}" = "$VALUE" ] || fail "$1: needs a value. See $0 --help."
        WORDS=2
        ;;
    esac
}

# read_text: read_value for a value that may begin with --, as a list of flags does.
read_text() {
    case $1 in
    *=*) read_value "$@" ;;
    *)
        [ $# -gt 1 ] || fail "$1: needs a value. See $0 --help."
        VALUE=$2
        WORDS=2
        ;;
    esac
}

# ask PROGRAM WORD...: what a program of maekit/drivers answers, which needs no packages; or its exit code.
# A PYTHON that is a script may have something of its own to say, such as which modules it loads: that is no answer.
ask() {
    local answer mark=$'\036' program='import runpy, sys; sys.path.insert(0, sys.argv[1]); del sys.argv[:2]; '
    program+='print(end="\36"); runpy.run_module(f"maekit.drivers.{sys.argv[0]}", run_name="__main__")'
    answer=$(PYTHONPATH='' "$PYTHON" -P -c "$program" "$KIT" "$@") || return
    answer=${answer#*"$mark"}
    [ -z "$answer" ] || printf '%s\n' "$answer"
}

# read_train_flag FLAG ...: a flag of train.py and its value into FLAG, the value into VALUE, how many words it took into
# WORDS, and what it is into KIND, see kind_of in values.py. Exit code 2 if train.py has no such flag.
# shellcheck disable=SC2034 # all are the caller's
read_train_flag() {
    [ -n "$known_flags" ] || known_flags=" $(use_any_python && ask values --train_flags) " || exit
    KIND=${known_flags#*" ${1%%=*}="}
    [ "$KIND" != "$known_flags" ] || fail "$1: neither $0 nor train.py has this flag. See $0 --help."
    KIND=${KIND%% *}
    VALUE=
    case $KIND in
    *switch) WORDS=1 ;;
    *) read_value "$@" ;;
    esac
    case $KIND in
    shared_value | shared_option) FLAG=("${1%%=*}" "$VALUE") ;;
    *) FLAG=("${@:1:WORDS}") ;; # as it is typed
    esac
}
known_flags=

# check_commands: exit code 2 if train.py would refuse one of the commands, whatever the data.
check_commands() {
    printf '%s\n' "$1" | ask check_commands
}

# The comment at the top of a script is its help.
print_banner() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

# clone_mae: clone upstream's MAE, patched, into mae beside the scripts; in a dry run print the command instead. It needs
# no packages, so it can come before the environment.
clone_mae() (
    use_any_python
    set -- env "PYTHONPATH=$KIT" "$PYTHON" -P -m maekit.model.upstream "$KIT/mae"
    if [ -n "$dry_run" ]; then command_line "$@"; else exec "$@"; fi
)

# Print the arguments as one line that a shell reads back as the same arguments; and pool.py, to which printf's %q would
# speak of $'...' in some languages.
command_line() {
    local word line='' quote="'" quoted="'\"'\"'"
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,+@%-]*) word=$quote${word//$quote/$quoted}$quote ;;
        esac
        line="$line$word "
    done
    printf '%s\n' "${line% }"
}

# read_running_flag FLAG ...: options of how runs are run, alike in all drivers. Sets WORDS; 1 if it is none of them.
read_running_flag() {
    case ${1%%=*} in
    --jobs) read_value "$@" && jobs=$VALUE ;;
    --nproc) read_value "$@" && nproc=$VALUE ;;
    --warm) read_value "$@" && warm=$VALUE ;;
    --slurm) read_text "$@" && slurm=$VALUE && on_cluster=1 ;;
    --open) WORDS=1 && analysis_flags+=(--open) ;;
    --wandb) WORDS=1 && wandb=1 ;;
    --wandb_project) read_value "$@" && wandb=1 && wandb_project=$VALUE ;;
    *) return 1 ;;
    esac
}
jobs=auto
nproc=1
warm=auto
slurm=
on_cluster=
analysis_flags=()
wandb=
wandb_project=
wandb_flags=()

# use_wandb NAME: if it is asked for, wandb_flags and analysis_flags name the project: the one typed, else
# $WANDB_PROJECT, else NAME.
use_wandb() {
    [ -n "$wandb" ] || return 0
    wandb_flags=(--wandb_project "${wandb_project:-${WANDB_PROJECT:-$1}}")
    analysis_flags+=("${wandb_flags[@]}")
}

check_running_flags() {
    local flag
    for flag in jobs nproc; do
        case $flag-${!flag} in
        jobs-auto) ;;
        *- | *-*[!0-9]* | *-0*) fail "--$flag ${!flag}: must be a whole number, 1 or more." ;;
        esac
    done
    case $warm in
    auto | off) ;;
    *) fail "--warm $warm: must be auto or off." ;;
    esac
}

# show_status FOLDER: how far the runs of its grids are.
show_status() {
    local grid files=()
    for grid in "$1/commands.txt" "$1/evaluations.txt"; do
        [ ! -e "$grid" ] || files+=("$grid")
    done
    [ ${#files[@]} != 0 ] || fail "status: no runs were started in $1. Type the options that they were started with, too."
    exec "$PYTHON" "$KIT/maekit/drivers/pool.py" --status "${files[@]}"
}

# check_data FLAG...: exit code 2 if the data are not enough for a run with these flags, in as many processes as --nproc says.
check_data() {
    WORLD_SIZE=$nproc "$PYTHON" "$KIT/train.py" --dry_run "$@"
}

# train_command FLAG...: a line that trains, in as many processes as --nproc says.
train_command() {
    if [ "$nproc" = 1 ]; then
        command_line "$PYTHON" "$KIT/train.py" "$@"
    else
        command_line "$PYTHON" -P -m torch.distributed.run --standalone --nproc_per_node "$nproc" "$KIT/train.py" "$@"
    fi
}

# run_and_analyse "GRIDS" FOLDER COMMAND...: for each word of GRIDS write what the driver's print_<word> prints to
# FOLDER/<word>.txt, then run these files in turn, and COMMAND, the analysis; here or as jobs of the cluster. TYPED, the
# driver's own command, is added to FOLDER/typed.txt.
run_and_analyse() {
    local grid grids=$1 folder=$2 files=()
    shift 2
    set -- "$@" ${analysis_flags[@]+"${analysis_flags[@]}"}
    for grid in $grids; do
        # Renamed into place, so that a driver that reads the file of another grid goes on reading its own.
        { mkdir -p "$folder" && "print_$grid" >"$folder/$grid.$$" && mv "$folder/$grid.$$" "$folder/$grid.txt"; } \
            2>/dev/null || fail "--output_dir: $folder cannot be written. Choose another --output_dir."
        files+=("$folder/$grid.txt")
    done
    # for the report: each command once
    grep -qxF -- "$TYPED" "$folder/typed.txt" 2>/dev/null || printf '%s\n' "$TYPED" >>"$folder/typed.txt" || true
    if [ -n "$on_cluster" ]; then
        exec "$PYTHON" "$KIT/maekit/drivers/slurm.py" --submit "$slurm" --nproc "$nproc" "${files[@]}" -- "$@"
    fi
    exec "$PYTHON" "$KIT/maekit/drivers/pool.py" --jobs "$jobs" --nproc "$nproc" --warm "$warm" "${files[@]}" -- "$@"
}
