# shellcheck shell=bash
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

# grid_values --flag VALUES: the values of a list, checked and spelled, or exit code 2.
grid_values() {
    # shellcheck disable=SC2086 # the list is split on purpose
    (set -f && PYTHONPATH=$KIT exec "$PYTHON" -m maekit.drivers.values "$1" $2)
}

# The comment at the top of a script is its help.
print_banner() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

# clone_mae: clone upstream's MAE, patched, into mae beside the scripts; in a dry run print the command instead. It needs
# no packages, so it can come before the environment.
clone_mae() (
    use_any_python
    set -- env "PYTHONPATH=$KIT" "$PYTHON" -m maekit.upstream "$KIT/mae"
    if [ -n "$dry_run" ]; then command_line "$@"; else exec "$@"; fi
)

# Print the arguments as one line that a shell reads back as the same arguments.
command_line() {
    local word line=
    for word in "$@"; do
        line="$line$(printf '%q' "$word") "
    done
    printf '%s\n' "${line% }"
}

# run_and_analyse "GRIDS" FOLDER COMMAND...: for each word of GRIDS write what the driver's print_<word> prints to
# FOLDER/<word>.txt, run these files in turn, then COMMAND, the analysis. Exits: 1 if a run failed, else with the analysis.
run_and_analyse() {
    local grid grids=$1 folder=$2 code=0
    shift 2
    for grid in $grids; do
        # Renamed into place, so that a driver that reads the file of another grid goes on reading its own.
        { mkdir -p "$folder" && "print_$grid" >"$folder/$grid.$$" && mv "$folder/$grid.$$" "$folder/$grid.txt"; } \
            2>/dev/null || fail "--output_dir: $folder cannot be written. Choose another --output_dir."
    done
    FAILURES=
    for grid in $grids; do run_grid "$folder/$grid.txt"; done
    "$@" || code=$?
    if [ -n "$FAILURES" ]; then
        printf '\nfailed; the same command tries again:\n%s' "$FAILURES" >&2
        exit 1
    fi
    exit "$code"
}

# run_grid FILE: run its commands one after the other. A failed one does not stop the rest and is added to FAILURES,
# a line each; an interrupt does, and is returned.
run_grid() {
    local line code number=0 failed=0 total
    total=$(grep -c . "$1")
    while IFS= read -r line <&3; do
        number=$((number + 1))
        printf '\n[%d/%d] %s\n' "$number" "$total" "$line"
        code=0
        bash -c "$line" 3<&- || code=$?
        case $code in
        0) ;;
        130 | 143)
            echo "stopped: $((number - 1 - failed)) of $total done, $failed failed;" \
                "the same command goes on from there." >&2
            return "$code"
            ;;
        *)
            failed=$((failed + 1))
            FAILURES="${FAILURES}exit code $code: $line
"
            ;;
        esac
    done 3<"$1"
}
