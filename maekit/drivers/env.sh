#!/usr/bin/env bash
# The Python that a driver runs on. Source this file with KIT set to the kit's folder, then call one of
#
#   use_environment   PYTHON becomes a Python that has all packages: the one in PYTHON, else the active one if it
#                     imports them, else .venv beside the scripts, made once from requirements-frozen.txt, or where the
#                     driver is older .venv-cuda12 from requirements-frozen-cuda12.txt, see pins.py; with CI set made
#                     afresh, so that a missing pin shows
#   use_any_python    PYTHON becomes any Python new enough for --help and --dry_run, which need no packages

# What other programs' settings would change: where cd leads, whether a script finds what lies beside it, and how many
# processes a run has, which torchrun says to those that it starts.
unset CDPATH PYTHONSAFEPATH RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT

use_environment() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" "$KIT/maekit/drivers/check_environment.py" ||
            fail "PYTHON=$PYTHON cannot run the kit (see above). Install requirements.txt there, or unset PYTHON."
    elif [ -z "${CI:-}" ] && active_python_suffices; then
        PYTHON=$(command -v python || command -v python3)
    else
        choose_venv
        make_venv "$VENV" "$KIT/$PINS" "${SYSTEMS[@]}"
        PYTHON=$VENV/bin/python
    fi
    export PYTHON
}

use_any_python() {
    PYTHON=$(any_python ${PYTHON:+"$PYTHON"}) || exit
    export PYTHON
}

SYSTEMS=(python python3 python3.13 python3.12 python3.11)
WHY=

# One line on stderr, exit code 2.
fail() {
    echo "error: $*" >&2
    exit 2
}

first_new_python() {
    local candidate
    for candidate in "$@"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found. Install one, or set PYTHON to its path."
}

# any_python [FIRST]: one that may lack packages
any_python() {
    first_new_python "$@" "$KIT/.venv-cuda12/bin/python" "$KIT/.venv/bin/python" "${SYSTEMS[@]}"
}

active_python_suffices() {
    local active
    active=$(command -v python || command -v python3) &&
        "$active" "$KIT/maekit/drivers/check_environment.py" --import 2>/dev/null
}

# Set VENV to the environment that this machine's driver asks for, PINS to the file that it is made from, and WHY.
choose_venv() {
    local python chosen
    python=$(any_python) || exit
    chosen=$("$python" "$KIT/maekit/drivers/pins.py" "$KIT" && echo end) || exit
    { read -r VENV && read -r PINS && read -r WHY; } <<<"$chosen"
    VENV=$KIT/$VENV
}

# venv_is_whole FOLDER LIST: the checksum of the list is written last, so an interrupted installation is made anew.
venv_is_whole() {
    [ "$(cat "$1/made-from" 2>/dev/null)" = "$(cksum <"$2")" ]
}

# make_venv FOLDER LIST PYTHON...: FOLDER with the packages of LIST, a file of requirements, of the first Python there is
make_venv() (
    venv=$1
    list=$2
    shift 2
    if [ -z "${CI:-}" ] && venv_is_whole "$venv" "$list"; then
        return
    fi
    [ -w "$KIT" ] || fail "$venv cannot be made: you may not write there. Have one who may run this first, or set" \
        "PYTHON to a Python that has what requirements.txt names."
    lock=$venv.lock
    waiting=
    nameless=0
    until mkdir "$lock" 2>/dev/null; do
        owner=$(cat "$lock/pid" 2>/dev/null || true)
        [ -n "$owner" ] || nameless=$((nameless + 1)) # killed, perhaps, before it could write its number
        if [ "$nameless" -gt 10 ] || { [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; }; then
            mv "$lock" "$lock.$$" 2>/dev/null && rm -rf "$lock.$$" # its maker was killed
            nameless=0
            continue
        fi
        [ -n "$waiting" ] || echo "waiting for process ${owner:-?}, which installs $venv" >&2
        waiting=1
        sleep 1
    done
    trap 'rm -rf "$lock"' EXIT
    trap 'exit 130' INT TERM
    echo $$ >"$lock/pid"
    if [ -n "$waiting" ] && venv_is_whole "$venv" "$list"; then
        return
    fi

    base=$(first_new_python "$@")
    [ -z "$WHY" ] || echo "$WHY" >&2
    echo "making $venv with $("$base" --version); torch is large, this takes some minutes" >&2
    "$base" -m venv --clear "$venv" ||
        fail "$base -m venv failed. On Debian and Ubuntu: apt install python3-venv. Or set PYTHON."
    "$venv/bin/python" -m pip install --disable-pip-version-check -r "$list" >&2 ||
        fail "installing ${list#"$KIT"/} failed (see above); the same command tries again."
    "$venv/bin/python" "$KIT/maekit/drivers/check_environment.py" --import || fail "$venv is not usable (see above)."
    cksum <"$list" >"$venv/made-from"
)
