#!/usr/bin/env bash
# Run a record of docs/results.md again, or compare its runs with the committed numbers: docs/reproduce.sh --help

set -euo pipefail
KIT=$(unset CDPATH && cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$KIT/maekit/drivers/env.sh"
use_environment
exec "$PYTHON" "$KIT/docs/reproduce.py" "$@"
