#!/usr/bin/env bash
# The reconstruction gap over learning rates and alphas: 2 by 3 runs, 10 epochs. Every flag of run_alpha_sweep.sh works.
#
#   ./lr_alpha_sweep.sh --demo        ten photographs, minutes on two cores
#   ./lr_alpha_sweep.sh               Imagenette

set -euo pipefail
SELF=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}") # where a link to this script leads
exec bash "$(dirname "$SELF")/run_alpha_sweep.sh" --name lr --lrs "1e-3 1e-4" --alphas "-0.5 0.0 0.5" --epochs 10 \
    --batch_size "${BATCH_SIZE:-64}" "$@"
