#!/usr/bin/env bash
# One experiment from its data to the zip: makes the environment on first use, then brings up to date what is not.
#
#   bash run_all.sh                               the quickstart: a drawn competition, minutes on two cores
#   bash run_all.sh vrdl2021 --data dataset.zip   an experiment of configs/experiments, or any YAML file
#
# Options: --until STAGE, --dry-run, --cores N, --gpus N, --executor NAME --jobs N, --model NAME, --fold K, --data PATH,
# --set KEY=VALUE, --root FOLDER; all others go to Snakemake.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/pipeline/environment.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${MASKFOLD_VENV:-$root/.venv}/bin/python" -P -m pipeline run "$@"
