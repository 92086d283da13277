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

echo "ruff and shellcheck"
ruff check .
ruff format --check .
# shellcheck disable=SC2046 # file names of ours have no spaces
shellcheck -x .ci/run $(git ls-files '*.sh')
# One thread a process: many small tensors on many processes otherwise wait for each other.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses auto --dist loadfile "$@"
