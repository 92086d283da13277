#!/usr/bin/env bash
# Set up what the tests need and run them: ./tests/run.sh [--quick | --oldest] [pytest arguments]
#
# All of it is what CI runs. --quick is for while one works: the linters, and the tests of every room that are not marked
# slow. Left out are tests/end_to_end (kills, torchrun, SLURM, a clone of upstream), the drivers' real runs, recorded
# outputs, figures that are looked at, and what else takes over 2 s; nothing is installed for them.
#
# --oldest runs the tests of --quick with the lowest versions that requirements.txt allows, on Python 3.11 if there is one,
# in .oldest: 8 GB, made at the first call and again when requirements.txt changes.

set -euo pipefail
quick=()
oldest=
case ${1-} in --quick | --oldest)
    quick=(-m "not slow")
    [ "$1" = --quick ] || oldest=yes
    shift
    ;;
esac
KIT=$(unset CDPATH && cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$KIT/maekit/drivers/env.sh"
cd "$KIT"

# pytest and the linters stay out of the environment, which may be the user's own
if [ -z "$oldest" ]; then
    use_environment
    tools=$KIT/.test-tools
else
    sed -n 's/^\([a-z0-9-]*\) *>= *\([0-9.]*\).*/\1==\2/p' requirements.txt >.oldest.txt
    make_venv "$KIT/.oldest" "$KIT/.oldest.txt" python3.11 python3.12 python python3
    export PYTHON=$KIT/.oldest/bin/python
    tools=$KIT/.oldest/test-tools
fi
made_from=$(cat tests/requirements*.txt | cksum)
if [ "$(cat "$tools/made-from" 2>/dev/null)" != "$made_from" ]; then
    rm -rf "$tools"
    install=("$PYTHON" -m pip install --disable-pip-version-check --quiet --target "$tools")
    "${install[@]}" -r tests/requirements.txt
    "${install[@]}" --no-deps -r tests/requirements-without-theirs.txt
    printf '%s\n' "$made_from" >"$tools/made-from"
fi
export PYTHONPATH=$tools${PYTHONPATH:+:$PYTHONPATH}
PATH=$tools/bin:$PATH

# install PACKAGES "WHAT": where that can be done without asking; else say what is not tested
install() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    if ! command -v apt-get >/dev/null || ! ${root[@]+"${root[@]}"} true 2>/dev/null; then
        echo "no right to install $1 here: $2 will not be tested (apt-get install $1)"
        return
    fi
    echo "installing $1 for the tests of $2"
    # shellcheck disable=SC2015,SC2086 # either may fail; a list of words
    ${root[@]+"${root[@]}"} apt-get update -qq >/dev/null 2>&1 &&
        ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $1 >/dev/null 2>&1 ||
        echo "apt-get install $1 failed: $2 will not be tested"
}
if [ ${#quick[@]} = 0 ]; then
    { command -v sbatch >/dev/null && PATH=$PATH:/usr/sbin command -v munged >/dev/null; } ||
        install "slurm-wlm munge" "--slurm"
    command -v chromium >/dev/null || command -v google-chrome >/dev/null || install chromium "report.html in a browser"
    { command -v wine && command -v x86_64-w64-mingw32-gcc; } >/dev/null ||
        install "--no-install-recommends wine gcc-mingw-w64-x86-64-win32" "run_comparison.bat in a cmd.exe"
fi

echo "ruff and shellcheck"
ruff check .
ruff format --check .
# shellcheck disable=SC2046 # file names of ours have no spaces
shellcheck -x .ci/run $(git ls-files '*.sh')
# One thread a process: many small tensors on many processes otherwise wait for each other.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder ${quick[@]+"${quick[@]}"} "$@"
