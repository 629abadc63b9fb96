#!/usr/bin/env bash
# The package on 64-bit Arm, in an emulator: Debian's Python, torch's wheel of PyPI, and our wheel, cross-compiled.
#   tests/arm64.sh FOLDER [PATTERN]
# FOLDER keeps the root and torch (5 GB) for the next time; PATTERN chooses parity cases, "*" takes all.  It wants Debian's qemu-user
# and gcc-aarch64-linux-gnu, and a Python with pip; it installs nothing outside of FOLDER.  Times in an emulator say nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || { echo "usage: $0 FOLDER [PATTERN]" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd) pattern=${2:-float}
root=$folder/root suite=bookworm python=3.11
for tool in qemu-aarch64 aarch64-linux-gnu-gcc apt-get dpkg; do
    command -v "$tool" > /dev/null || { echo "no $tool here" >&2; exit 1; }
done
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH TORCHLSTM_ENGINE TORCHLSTM_ISA

began=$SECONDS
part() { printf '== %s: %d s\n' "$1" $((SECONDS - began)); began=$SECONDS; }

# apt-get for another architecture, with lists and a cache of its own, as if nothing were installed.
get() {
    local state=$folder/apt
    mkdir -p "$state"/{lists,cache/archives}/partial
    : > "$state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" \
        > "$state/sources.list"
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= \
        -o APT::Install-Recommends=false -o Dir::State="$state" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- "$@"
}
if [ ! -e "$folder/root.done" ]; then
    get update
    get install --yes --download-only "libpython$python-dev" "python$python" libstdc++6
    for package in "$folder"/apt/cache/archives/*.deb; do dpkg -x "$package" "$root"; done
    # What the kernel of an Arm machine says of its processors, a Neoverse N1 each: torch reads it, and the emulator hands out
    # that of this machine.
    mkdir -p "$root/proc"
    for ((i = 0; i < $(nproc --all); i++)); do
        printf '%s\t: %s\n' processor "$i" BogoMIPS 50.00 \
            Features "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
            "CPU implementer" 0x41 "CPU architecture" 8 "CPU variant" 0x3 "CPU part" 0xd0c "CPU revision" 1
        echo
    done > "$root/proc/cpuinfo"
    touch "$folder/root.done"
    part "Debian's root"
fi

# pip for that Python: wheels only, and only those that it would take.
fetch() {
    local platforms=(--platform manylinux2014_aarch64) minor
    for minor in {17..28}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
    "$folder/tools/bin/pip" install -qq --no-cache-dir --only-binary :all: --python-version "$python" "${platforms[@]}" \
        --no-warn-conflicts --upgrade --target "$@"
}
[ -e "$folder/tools" ] || python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install -qq build wheel auditwheel "setuptools>=77"
if [ ! -e "$folder/torch.done" ]; then
    fetch "$folder/torch" "$(grep '^torch==' "$here/constraints.txt")" numpy
    touch "$folder/torch.done"
    part "torch and what it wants"
fi

rm -rf "$folder"/{tree,dist,ours}
mkdir "$folder/tree"
(cd "$here" && git ls-files -z | xargs -0 cp --parents -t "$folder/tree")
CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" _PYTHON_HOST_PLATFORM=linux-aarch64 \
    CFLAGS="-I$root/usr/include -I$root/usr/include/python$python" TORCHLSTM_REQUIRE_KERNEL=1 \
    "$folder/tools/bin/python" -m build --wheel --no-isolation --outdir "$folder/dist" "$folder/tree" > "$folder/log" 2>&1 \
    || { cat "$folder/log"; exit 1; }
tag=$("$folder/tools/bin/auditwheel" show "$folder"/dist/*.whl 2> /dev/null | grep -o 'manylinux_[0-9_]*_aarch64' | head -n 1)
"$folder/tools/bin/wheel" tags --remove --platform-tag "$tag" "$folder"/dist/*.whl
fetch "$folder/ours" --no-deps "$folder"/dist/*.whl
part "our wheel"

# On two threads, however many processors there are: the kernel is to use both.
cd "$folder"
arm() {
    OMP_NUM_THREADS=2 PYTHONPATH=$folder/ours:$folder/torch qemu-aarch64 -cpu neoverse-n1 -L "$root" \
        "$root/usr/bin/python$python" -W ignore "$@" 2> "$folder/err" || { cat "$folder/err"; exit 1; }
}
arm -m torchlstm info
arm - << 'PYTHON'
import torch, torchlstm
from torchlstm.engines.cpu.engine import _kernel, latest_threads

assert torchlstm.engines()["cpu"] is None, torchlstm.engines()
assert _kernel.openmp, "torch's OpenMP is not found"
_kernel.adapt(False)
with torchlstm.use_engine("cpu"), torch.no_grad():
    torchlstm.LSTM(64, 128)(torch.randn(30, 16, 64))
assert latest_threads().used == 2, latest_threads()
print("two threads: passed")
PYTHON
part "what it says of itself"
arm -m torchlstm parity --engine cpu --case "$pattern"
part "parity"
