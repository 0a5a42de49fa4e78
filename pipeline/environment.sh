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
#   CUDA_HOME           the CUDA toolkit whose nvcc compiles          (default: nvcc of PATH, then /usr/local/cuda)
#   FORCE_CUDA=1        compile for GPUs on a machine that has none, e.g. a cluster's login node
#   TORCH_CUDA_ARCH_LIST  the GPUs to compile for, e.g. "6.0;7.5"     (default: the GPUs here; without any, all of torch's)
#   PYTHON              the Python to build on, 3.11 or 3.12          (default: the first one found)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${MASKFOLD_VENV:-$root/.venv}")
wheels=${MASKFOLD_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/maskfold/wheels}
torch_choice=${MASKFOLD_TORCH:-auto}
log=$venv.log

say() { printf '[environment] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ---- what is here? -------------------------------------------------------------------------------------------
gpu=no driver='' capabilities=''
if nvidia-smi -L >/dev/null 2>&1; then
  gpu=yes
  rows=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null || true)
  driver=$(printf '%s\n' "$rows" | grep -oE '^[0-9]+' | head -n 1 || true)
  capabilities=$(printf '%s\n' "$rows" | cut -d, -f2 | grep -oE '[0-9]+\.[0-9]+' | sort -uV || true)
fi

# nvcc where torch looks for it (torch.utils.cpp_extension)
toolkit=${CUDA_HOME:-${CUDA_PATH:-}}
if [ -n "$toolkit" ]; then nvcc=$toolkit/bin/nvcc; else nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc); fi
[ -x "$nvcc" ] || nvcc=''
nvcc_version=''
[ -z "$nvcc" ] || nvcc_version=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' || true)

# ---- which torch build do the GPU, its driver and the CUDA toolkit need? ------------------------------------------
# PyPI's torch 2.11 is built for CUDA 13: driver 580 or newer, compute capability 7.5 (T4) or newer.
# CUDA 12.6 builds run on drivers from 525 and still hold kernels for the P100 (6.0) and V100 (7.0);
# Blackwell cards (10.0 and up) on an older driver need the CUDA 12.8 build.
# Operators only compile with a toolkit of the same major version: one of CUDA 12 wants a CUDA 12 build on any driver.
oldest_driver() { case $1 in cu126) echo 525 ;; cu128) echo 570 ;; *) echo 580 ;; esac; }
cuda_major() { case $1 in cpu) ;; cu[0-9]*) echo "${1:2:2}" ;; *) echo 13 ;; esac; }
# What each build has machine code for (without sm_50, for which mmcv does not compile).
kernels() {
  case $1 in
    cu126) echo 6.0 7.0 7.5 8.0 8.6 9.0 ;;
    cu128) echo 7.0 7.5 8.0 8.6 9.0 10.0 12.0 ;;
    *) echo 7.5 8.0 8.6 9.0 10.0 12.0 ;;
  esac
}
choose_torch() {
  local weakest
  if [ "$torch_choice" != auto ]; then echo "$torch_choice"; return; fi
  if [ -z "$driver" ] || [ -z "$capabilities" ]; then
    if [ "${FORCE_CUDA:-0}" = 1 ] && [ "${nvcc_version%%.*}" = 12 ]; then echo cu126; else echo pypi; fi
    return
  fi
  weakest=$(head -n 1 <<<"$capabilities" | tr -d .)   # the weakest card decides
  if [ "$driver" -ge 580 ] && [ "$weakest" -ge 75 ] && [ "${nvcc_version%%.*}" != 12 ]; then echo pypi
  elif [ "$weakest" -ge 100 ] && [ "$driver" -ge 570 ]; then echo cu128
  elif [ "$driver" -ge 525 ] && [ "$weakest" -lt 100 ]; then echo cu126
  else
    say "NVIDIA driver $driver is too old for this card and torch 2.11; installing for the CPU (update the driver to use the GPU)"
    echo pypi
  fi
}
build=$(choose_torch)

# The architectures to compile for, as TORCH_CUDA_ARCH_LIST. Each card gets the newest that both it and torch know; torch
# itself would take the cards that it sees while it compiles, and stop with an IndexError where it sees none.
architectures() {
  local known card best chosen=''
  if [ -n "${TORCH_CUDA_ARCH_LIST:-}" ] && [ "$TORCH_CUDA_ARCH_LIST" != native ]; then echo "$TORCH_CUDA_ARCH_LIST"; return; fi
  for card in $capabilities; do
    best=''
    for known in $(kernels "$1"); do [ "${known/./}" -gt "${card/./}" ] || best=$known; done
    [ -z "$best" ] || chosen+="$best "
  done
  [ -n "$chosen" ] || chosen=$(kernels "$1")
  # shellcheck disable=SC2086  one word each
  echo "$(printf '%s\n' $chosen | sort -uV | paste -sd ';')+PTX"
}
list=$(architectures "$build")

# ---- is there anything to do? --------------------------------------------------------------------------------
# Without nvcc the operators of mmcv and Detectron2 are compiled for the CPU alone, which is enough to train on the CPU.
name_of() { tr -c 'A-Za-z0-9.+\n' _ <<<"$1"; }   # a list as a part of a file name
operators=cpu
usable=no   # a GPU that this torch will see
if [ "$gpu" = yes ] && [ "$build" != cpu ] && [ "${driver:-999}" -ge "$(oldest_driver "$build")" ]; then usable=yes; fi
if [ -n "$nvcc" ] && [ "$build" != cpu ] && { [ "$usable" = yes ] || [ "${FORCE_CUDA:-0}" = 1 ]; }; then
  operators=cuda-$(name_of "$list")
fi
hash=$(cat "$root/requirements.txt" "$root/requirements-detectron2.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
fingerprint=$hash-$build-$operators

# An environment may do more than this machine would make it for, e.g. in a home shared by machines with different GPUs, or
# none, or without nvcc: what serves here is left as it is.
serves() {
  local had=$1 had_build had_list card arch
  case $had in "$hash"-*-cuda-*) ;; *) return 1 ;; esac
  had_build=${had#"$hash-"} had_build=${had_build%%-*} had_list=_${had#*-cuda-}_
  [ "$torch_choice" = auto ] || [ "$torch_choice" = "$had_build" ] || return 1
  if [ "$gpu" = yes ]; then [ "${driver:-0}" -ge "$(oldest_driver "$had_build")" ] || return 1
  elif [ "${FORCE_CUDA:-0}" != 1 ]; then return 0; fi
  for card in $capabilities; do   # torch's own code is for cards of the same major number
    case " $(kernels "$had_build")" in *" ${card%.*}."*) ;; *) return 1 ;; esac
  done
  for arch in $(architectures "$had_build" | tr ';' ' '); do
    case ${had_list//+PTX/} in *_"${arch%+PTX}"_*) ;; *) return 1 ;; esac
  done
}
ready() {
  local had
  had=$(cat "$venv/.maskfold" 2>/dev/null || true)
  [ "$had" = "$fingerprint" ] || serves "$had"
}
if ready; then exit 0; fi

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
  die "$venv is not empty and is no Python environment; making one there would delete what is in it. Set MASKFOLD_VENV to a new folder (or remove this one)"
fi
if [ "${FORCE_CUDA:-0}" = 1 ] && [ "$operators" = cpu ]; then
  die "FORCE_CUDA=1 needs nvcc and a torch for CUDA (nvcc: ${nvcc:-none}; torch build: $build); install the CUDA toolkit and set CUDA_HOME, or unset FORCE_CUDA"
fi
if [ "$operators" != cpu ] && [ -n "$nvcc_version" ] && [ "${nvcc_version%%.*}" != "$(cuda_major "$build")" ]; then
  die "$nvcc is of CUDA $nvcc_version, but the torch build $build is of CUDA $(cuda_major "$build") and compiles with a toolkit of that major version only. Install one and set CUDA_HOME to it (driver: ${driver:-none}; MASKFOLD_TORCH chooses another build); CUDA_HOME=/none does without nvcc, and MMDetection models then run on the CPU"
fi

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
  wait "$job" || { [ "${optional:-no}" = yes ] || tail -n 25 "$log" >&2; return 1; }
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
# kept by torch build, Python, mmcv version and GPUs; put MASKFOLD_WHEELS on a drive to keep it between Colab sessions.
mmcv=$(pinned onedl-mmcv)
if [ "$operators" != cpu ]; then
  export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$list
  say "operators are compiled for compute capability $list by $nvcc (CUDA ${nvcc_version:-unknown})"
else
  # both set-ups take a GPU that torch sees for one to compile for, even where there is no nvcc
  unset FORCE_CUDA
  export CUDA_VISIBLE_DEVICES=''
  if [ "$usable" = yes ]; then
    say "there is a GPU but no nvcc: mmcv's operators are compiled for the CPU only, and MMDetection models will run there. To use the GPU install the CUDA toolkit ($(cuda_major "$build").x) and run bash pipeline/environment.sh again"
  fi
fi
compilers() {
  [ "$operators" = cpu ] || echo " for CUDA: nvcc ($nvcc) is of CUDA ${nvcc_version:-unknown}, torch of CUDA $torch_cuda, which should be the same; the compute capabilities were $list"
}
torch_cuda=$("$py" -c 'import torch; print(torch.version.cuda)')
tag=$("$py" -c "import sys, torch; print(f'{torch.__version__}-py{sys.version_info[0]}{sys.version_info[1]}')")
shelf=$wheels/$mmcv-torch$tag-$operators
wheel_file() { ls "$shelf"/onedl_mmcv-*.whl 2>/dev/null | head -n 1; }
if [ -z "$(wheel_file)" ]; then
  mkdir -p "$shelf"
  scratch=$(mktemp -d "$shelf/build.XXXXXX")
  export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
  step "compiling onedl-mmcv's operators (about 7 minutes on two cores)" \
    pip wheel -v --no-deps --no-cache-dir --no-build-isolation --wheel-dir "$scratch" "$mmcv" ||
    die "onedl-mmcv did not compile$(compilers) (a C++ compiler and Python headers are needed: apt-get install build-essential python3-dev); see $log"
  mv "$scratch"/onedl_mmcv-*.whl "$shelf/"; rm -rf "$scratch"
fi
step "installing onedl-mmcv" pip install --no-deps --force-reinstall "$(wheel_file)" || die "see $log"
step "installing everything else" pip install -r "$root/requirements.txt" 'setuptools<81' || die "see $log"

# ---- Detectron2: wanted, not required ------------------------------------------------------------------------
# Its operators are compiled against one torch and for some GPUs: with others, or another pin, it is built again. One that
# was added by hand and works is left alone.
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
  if optional=yes step "trying Detectron2 (compiles for about 80 s when its git can be reached)" detectron2; then
    printf '%s\n' "$wanted" >"$venv/.detectron2"
  else
    say "Detectron2 could not be installed; its models will be skipped. To add it: $py -m pip install --no-build-isolation -r requirements-detectron2.txt (why: $log)"
    "$py" -c 'import torch; from detectron2 import _C' 2>/dev/null || "$py" -m pip uninstall -y detectron2 >>"$log" 2>&1 || true
  fi
fi

"$py" -m pip check >>"$log" 2>&1 || say "note: pip check has complaints, see $log"
printf '%s\n' "$fingerprint" >"$venv/.maskfold"
say "ready after $((SECONDS - started)) s"
