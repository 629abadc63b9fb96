#!/usr/bin/env bash
# Everything that has to be seen on a GPU, inside ten minutes; see gpu_check.py for the steps and their limits.
#
#   pip install -c constraints.txt -e ".[test]"      # or what that installs, on a machine that has its own torch
#   benchmarks/gpu_check.sh [folder]                 # default: gpu-check
#   benchmarks/gpu_check.sh --dry-run [folder]       # every step at a tiny size, without a GPU
#
# PYTHON=... chooses the interpreter.
set -eu
folder=$PWD
args=()
for arg in "$@"; do
  # A folder is meant from where this is called.
  case $arg in -*|/*) args+=("$arg") ;; *) args+=("$folder/$arg") ;; esac
done
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu_check "${args[@]}"
