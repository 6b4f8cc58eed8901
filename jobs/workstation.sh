#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Usage: jobs/workstation.sh [--ranks R] [--output DIR]

Figure 1 of the paper on this machine: sets up if needed, runs the presets fig1b, fig1c and fig1d, draws the figure.

  --ranks R     MPI ranks (default: the physical cores that may be used)
  --output DIR  folder of result files and figures (default: results/figure1 in the project)
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$root/results/figure1 ranks=
while (($#)); do
    case $1 in
        --ranks) ranks=${2:?--ranks needs a number} && shift 2 ;;
        --output) output=${2:?--output needs a folder} && shift 2 ;;
        -h | --help) usage && exit ;;
        *) echo "workstation: unknown option $1 (--ranks, --output, --help)" >&2 && exit 2 ;;
    esac
done

bash "$root/jobs/setup.sh" --keep
# shellcheck source=env.sh disable=SC1091
source "$root/jobs/env.sh"
mkdir -p "$output"

results=()
for panel in fig1b fig1c fig1d; do
    run_mpi "${ranks:=$(cores)}" mpi-resmtl run "$panel" --output "$output/$panel.h5" --overwrite
    results+=("$output/$panel.h5")
done
python "$root/analysis/figure1.py" "${results[@]}" -o "$output"

echo "result files: ${results[*]}"
echo "figures:      $(echo "$output"/*.png)"
