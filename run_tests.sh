#!/usr/bin/env bash
# The whole suite in the environment that run_all.sh uses: style, types, tests. Arguments go to pytest.
#
#   bash run_tests.sh                            everything
#   bash run_tests.sh tests/test_views.py -k rot
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/pipeline/environment.sh"
python=${MASKFOLD_VENV:-$root/.venv}/bin/python
python=$(realpath -s "$python")
cd "$root"
# the tests' arrays are small: more threads win nothing, and on a busy machine they wait for each other
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m ruff check .
"$python" -m ruff format --check --quiet . || { echo "some files are not formatted; run: $python -m ruff format ." >&2; exit 1; }
"$python" -m mypy
exec "$python" -m pytest "$@"
