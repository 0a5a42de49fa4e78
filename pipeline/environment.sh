#!/usr/bin/env bash
# Makes the Python environment (.venv) that run_all.sh, run_tests.sh and the notebooks use.
#
#   bash pipeline/environment.sh          make or update .venv; does nothing when the requirements did not change
#
# Settings, all optional:
#   MASKFOLD_VENV       where the environment lives                  (default: .venv beside run_all.sh)
#   MASKFOLD_WHEELS     where the compiled onedl-mmcv wheel is kept  (default: ~/.cache/maskfold/wheels)
#   MASKFOLD_TORCH      auto | pypi | cpu | cu126 | cu128: which torch build  (default: auto, from nvidia-smi)
#   MASKFOLD_DETECTRON2 auto | no: whether to try Detectron2          (default: auto)
#   PYTHON              the Python to build on, 3.11 or 3.12          (default: the first one found)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${MASKFOLD_VENV:-$root/.venv}")
wheels=${MASKFOLD_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/maskfold/wheels}
torch_choice=${MASKFOLD_TORCH:-auto}
log=$venv.log

say() { printf '[environment] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ---- which torch build do the GPU and its driver need? -----------------------------------------------------------
# PyPI's torch 2.11 is built for CUDA 13: driver 580 or newer, compute capability 7.5 (T4) or newer.
# CUDA 12.6 builds run on drivers from 525 and still hold kernels for the P100 (6.0) and V100 (7.0);
# Blackwell cards (10.0 and up) on an older driver need the CUDA 12.8 build.
choose_torch() {
  local rows driver capability
  if [ "$torch_choice" != auto ]; then echo "$torch_choice"; return; fi
  command -v nvidia-smi >/dev/null 2>&1 || { echo pypi; return; }
  rows=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) || { echo pypi; return; }
  [ -n "$rows" ] || { echo pypi; return; }
  driver=$(printf '%s\n' "$rows" | head -n 1 | cut -d. -f1)
  capability=$(printf '%s\n' "$rows" | cut -d, -f2 | tr -d ' .' | sort -n | head -n 1)   # the weakest card decides
  if [ "$driver" -ge 580 ] && [ "$capability" -ge 75 ]; then echo pypi
  elif [ "$capability" -ge 100 ] && [ "$driver" -ge 570 ]; then echo cu128
  elif [ "$driver" -ge 525 ] && [ "$capability" -lt 100 ]; then echo cu126
  else
    say "NVIDIA driver $driver is too old for this card and torch 2.11; installing for the CPU (update the driver to use the GPU)"
    echo pypi
  fi
}
build=$(choose_torch)

# ---- is there anything to do? --------------------------------------------------------------------------------
# Without nvcc mmcv's operators are compiled for the CPU alone, which is enough to train on the CPU. FORCE_CUDA=1 compiles
# them for GPUs on a machine that has none itself, e.g. a cluster's login node.
operators=cpu
if command -v nvcc >/dev/null 2>&1 || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  if [ "${FORCE_CUDA:-0}" = 1 ] || nvidia-smi -L >/dev/null 2>&1; then operators=cuda; fi
fi
fingerprint=$(cat "$root/requirements.txt" "$root/requirements-detectron2.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
fingerprint=$fingerprint-$build-$operators
ready() { [ "$(cat "$venv/.maskfold" 2>/dev/null || true)" = "$fingerprint" ]; }
if ready; then exit 0; fi

# One set-up at a time: a second caller waits here and then finds the work done.
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock -n 9 || { say "another set-up is at work on $venv; waiting for it"; flock 9; }
if ready; then exit 0; fi

started=$SECONDS
: >"$log"
say "making $venv (torch build: $build; log: $log). About 10 minutes on two cores, once."

# pip takes one build of a version for another, so another build starts from an empty environment
if [ "$(cat "$venv/.torch-build" 2>/dev/null || echo "$build")" != "$build" ]; then
  say "the torch build changes from $(cat "$venv/.torch-build") to $build: starting afresh"
  rm -rf "$venv"
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=${PYTHON:-}
  if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3; do
      if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$candidate; break
      fi
    done
  fi
  [ -n "$python" ] || die "no Python 3.11 or 3.12 found; install one (Debian: apt-get install python3.11 python3.11-venv) or set PYTHON=/path/to/python"
  "$python" -m venv --clear "$venv" >>"$log" 2>&1 ||
    die "'$python -m venv' failed (Debian: apt-get install python3-venv python3-dev build-essential); see $log"
fi
py=$venv/bin/python
rm -f "$venv/.maskfold"

# Runs a command with its output in the log, showing the last build step while it works.
step() {
  local title=$1 began=$SECONDS shown='' line; shift
  say "$title"
  "$@" >>"$log" 2>&1 9>&- &
  local job=$!
  while kill -0 "$job" 2>/dev/null; do
    sleep 2
    line=$(tail -c 20000 "$log" | tr '\r' '\n' | grep -aoE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 | tr -d ' ' || true)
    if [ -n "$line" ] && [ "$line" != "$shown" ] && [ $(((SECONDS - began) % 10)) -lt 2 ]; then
      say "  compiling $line, $((SECONDS - began)) s"; shown=$line
    fi
  done
  wait "$job" || { tail -n 25 "$log" >&2; return 1; }
}
pip() { "$py" -m pip --disable-pip-version-check --no-input "$@"; }
pinned() { grep -E "^$1==" "$root/requirements.txt"; }

# setuptools before 81 still brings pkg_resources, which the builds of mmcv and Detectron2 import.
step "installing build tools" pip install --upgrade pip 'setuptools<81' wheel ninja || die "pip failed; see $log"

torch_index=()
[ "$build" = pypi ] || torch_index=(--index-url "https://download.pytorch.org/whl/$build")
step "installing numpy" pip install "$(pinned numpy)" || die "see $log"
step "installing torch ($build)" pip install "${torch_index[@]}" "$(pinned torch)" "$(pinned torchvision)" ||
  die "torch could not be installed; see $log"
printf '%s\n' "$build" >"$venv/.torch-build"

# onedl-mmcv comes as source only. pip's own cache does not know which torch a wheel was compiled against, so ours is
# kept by torch build, Python and mmcv version; put MASKFOLD_WHEELS on a drive to keep it between Colab sessions.
mmcv=$(pinned onedl-mmcv)
tag=$("$py" -c "import sys, torch; print(f'{torch.__version__}-py{sys.version_info[0]}{sys.version_info[1]}')")
shelf=$wheels/$mmcv-torch$tag-$operators
wheel_file() { ls "$shelf"/onedl_mmcv-*.whl 2>/dev/null | head -n 1; }
if [ -z "$(wheel_file)" ]; then
  mkdir -p "$shelf"
  scratch=$(mktemp -d "$shelf/build.XXXXXX")
  export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
  if [ "$operators" = cuda ]; then export FORCE_CUDA=1
  elif nvidia-smi -L >/dev/null 2>&1; then
    say "there is a GPU but no nvcc: mmcv's operators are compiled for the CPU only (install the CUDA toolkit of torch's version)"
  fi
  step "compiling onedl-mmcv's operators (about 7 minutes on two cores)" \
    pip wheel -v --no-deps --no-cache-dir --no-build-isolation --wheel-dir "$scratch" "$mmcv" ||
    die "onedl-mmcv did not compile (a C++ compiler and Python headers are needed: apt-get install build-essential python3-dev); see $log"
  mv "$scratch"/onedl_mmcv-*.whl "$shelf/"; rm -rf "$scratch"
fi
step "installing onedl-mmcv" pip install --no-deps --force-reinstall "$(wheel_file)" || die "see $log"
step "installing everything else" pip install -r "$root/requirements.txt" 'setuptools<81' || die "see $log"

# ---- Detectron2: wanted, not required ------------------------------------------------------------------------
# Its operators are compiled against one torch: with another torch or another pin it is built again. One that was added by
# hand and works is left alone.
wanted=$(sha256sum <"$root/requirements-detectron2.txt" | cut -c1-16)-$tag-$operators
kept=$(cat "$venv/.detectron2" 2>/dev/null || true)
if "$py" -c 'import torch; from detectron2 import _C' 2>/dev/null && [ "${kept:-$wanted}" = "$wanted" ]; then :
elif [ "${MASKFOLD_DETECTRON2:-auto}" = no ]; then
  say "Detectron2 was not asked for (MASKFOLD_DETECTRON2=no); its models will be skipped"
else
  # first without the pinned git's own dependencies, so that an old build is replaced and nothing else is
  detectron2() {
    env GIT_TERMINAL_PROMPT=0 timeout 1800 "$py" -m pip install --no-build-isolation --force-reinstall --no-deps \
      -r "$root/requirements-detectron2.txt" && "$py" -m pip install --no-build-isolation -r "$root/requirements-detectron2.txt"
  }
  if step "trying Detectron2 (compiles for about 80 s when its git can be reached)" detectron2; then
    printf '%s\n' "$wanted" >"$venv/.detectron2"
  else
    say "Detectron2 could not be installed; its models will be skipped. To add it: $py -m pip install --no-build-isolation -r requirements-detectron2.txt"
    "$py" -c 'import torch; from detectron2 import _C' 2>/dev/null || "$py" -m pip uninstall -y detectron2 >>"$log" 2>&1 || true
  fi
fi

"$py" -m pip check >>"$log" 2>&1 || say "note: pip check has complaints, see $log"
printf '%s\n' "$fingerprint" >"$venv/.maskfold"
say "ready after $((SECONDS - started)) s"
