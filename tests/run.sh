#!/usr/bin/env bash
# Set up what the tests need and run them: ./tests/run.sh [pytest arguments]

set -euo pipefail
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$KIT/maekit/drivers/env.sh"
cd "$KIT"
use_environment

# pytest and the linters stay out of the environment, which may be the user's own
tools=$KIT/.test-tools
if [ "$(cat "$tools/made-from" 2>/dev/null)" != "$(cksum <tests/requirements.txt)" ]; then
    rm -rf "$tools"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet --target "$tools" -r tests/requirements.txt
    cksum <tests/requirements.txt >"$tools/made-from"
fi
export PYTHONPATH=$tools${PYTHONPATH:+:$PYTHONPATH}
PATH=$tools/bin:$PATH

# SLURM, for the tests of --slurm, where it can be installed without asking; without it they say what was not tested
install_slurm() {
    local root=()
    if command -v sbatch >/dev/null && { PATH=$PATH:/usr/sbin command -v munged >/dev/null; }; then return; fi
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    if ! command -v apt-get >/dev/null || ! ${root[@]+"${root[@]}"} true 2>/dev/null; then
        echo "no SLURM here and no right to install it: --slurm will not be tested (apt-get install slurm-wlm munge)"
        return
    fi
    echo "installing SLURM for the tests of --slurm"
    # shellcheck disable=SC2015 # either may fail
    ${root[@]+"${root[@]}"} apt-get update -qq >/dev/null 2>&1 &&
        ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq slurm-wlm munge >/dev/null 2>&1 ||
        echo "apt-get install slurm-wlm munge failed: --slurm will not be tested"
}
install_slurm

echo "ruff and shellcheck"
ruff check .
ruff format --check .
# shellcheck disable=SC2046 # file names of ours have no spaces
shellcheck -x .ci/run $(git ls-files '*.sh')
# One thread a process: many small tensors on many processes otherwise wait for each other.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses auto --dist loadfile "$@"
