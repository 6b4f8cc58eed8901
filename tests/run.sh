#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Usage: tests/run.sh [PYTEST ARGUMENTS]

Sets up if needed, checks the style (ruff) and runs all tests, or those that the arguments choose (-k graph).
END
}

if [[ ${1:-} == --help ]]; then usage && exit; fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/jobs/setup.sh" --keep --test
# shellcheck source=../jobs/env.sh disable=SC1091
source "$root/jobs/env.sh"

cd "$root"
ruff check
ruff format --check
python -m pytest "$@"
