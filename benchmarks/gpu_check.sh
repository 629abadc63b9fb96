#!/usr/bin/env bash
# Everything that has to be seen on a GPU, inside ten minutes: parity, stress, compute-sanitizer, kernel names, speed.
#
#   pip install -c constraints.txt -e ".[test]"      # or what that installs, on a machine that has its own torch
#   benchmarks/gpu_check.sh [folder]                 # default: gpu-check
#
# Leaves a log of every step and the JSON of parity, stress and benchmarks in the folder; prints a table last.
# PYTHON=... chooses the interpreter.  Exit code 0 if every step ran and was green.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=$(mkdir -p "${1:-gpu-check}" && cd "${1:-gpu-check}" && pwd)
end=$((SECONDS + 590))
table=""
failed=0

# step NAME SECONDS COMMAND...: run it, at most so long and never beyond the ten minutes.
step() {
  local name=$1 limit=$2 start=$SECONDS left code
  shift 2
  left=$((end - SECONDS))
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    table+=$(printf '%-22s %5s    not run: no time left' "$name" -)$'\n'
    failed=1
    return
  fi
  printf '\n== %s: %s\n' "$name" "$*"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  tail -n 4 "$out/$name.log"
  local said="ok"
  [ "$code" -eq 124 ] && said="stopped after $limit s"
  [ "$code" -ne 0 ] && [ "$code" -ne 124 ] && said="exit code $code"
  [ "$code" -ne 0 ] && failed=1
  table+=$(printf '%-22s %5d s  %-22s %s' "$name" $((SECONDS - start)) "$said" "$(tail -n 1 "$out/$name.log" | cut -c -90)")$'\n'
}

sanitizer() {
  if command -v compute-sanitizer >/dev/null; then
    step "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 "$python" -m benchmarks.gpu_stress --once
  else
    table+=$(printf '%-22s %5s    not run: no compute-sanitizer on the PATH' "$1" -)$'\n'
    failed=1
  fi
}

groups="grid-float32 grid-bfloat16 grid-float16 rest-float32 rest-bfloat16 rest-float16"
measure=("$python" -m benchmarks --device cuda --engine cuda --no-memory)

step info 30 "$python" -m torchlstm info
step parity-reference 60 "$python" -m torchlstm parity --device cuda --engine reference --json "$out/parity-reference.json"
step parity-cuda 150 "$python" -m torchlstm parity --device cuda --engine cuda --json "$out/parity-cuda.json"
step stress 120 "$python" -m benchmarks.gpu_stress --seconds 60 --json "$out/stress.json"
# A kernel takes about a second to compile, and there are hundreds: side by side, into Triton's cache, before the clock runs.
step compile 150 xargs -P 6 -n 1 -a <(printf '%s\n' $groups) "${measure[@]}" --seconds 0.001 --workloads
step benchmarks 240 "${measure[@]}" --seconds 0.1 --workloads "${groups// /,}" \
  --json "$out/benchmarks.json" --markdown "$out/benchmarks.md"
step kernels 40 "$python" -m benchmarks.gpu_kernels
sanitizer memcheck 60
sanitizer racecheck 60

printf '\n%s\n%s\nkept in %s\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null)" "$table" "$out"
exit $failed
