# shellcheck shell=bash
# A grid is a file of commands, one a line, written down before the first one runs.

# Print the arguments as one line that a shell reads back as the same arguments.
command_line() {
    local word line=
    for word in "$@"; do
        line="$line$(printf '%q' "$word") "
    done
    printf '%s\n' "${line% }"
}

# run_grid FILE: run its commands one after the other. A failed one does not stop the rest and is added to FAILURES,
# a line each; an interrupt does, and is returned.
run_grid() {
    local line code number=0 total
    total=$(grep -c . "$1")
    FAILURES=
    while IFS= read -r line <&3; do
        number=$((number + 1))
        printf '\n[%d/%d] %s\n' "$number" "$total" "$line"
        code=0
        bash -c "$line" 3<&- || code=$?
        case $code in
        0) ;;
        130 | 143)
            echo "stopped in $number of $total; the same command goes on from there." >&2
            return "$code"
            ;;
        *)
            FAILURES="${FAILURES}exit code $code: $line
"
            ;;
        esac
    done 3<"$1"
}
