#!/usr/bin/env bash
# The reconstruction gap in short, to see that all works: 3 alphas, 10 epochs. Every flag of run_alpha_sweep.sh works.
#
#   ./quick_sweep_test.sh --demo        ten photographs, minutes on two cores
#   ./quick_sweep_test.sh               Imagenette

set -euo pipefail
SELF=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}") # where a link to this script leads
exec bash "$(dirname "$SELF")/run_alpha_sweep.sh" --name quick --alphas "-0.5 0.0 0.5" --epochs 10 \
    --batch_size "${BATCH_SIZE:-64}" "$@"
