#!/usr/bin/env bash
# The C kernel under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on threads of the driver's own.
#   CC=clang tests/sanitize/run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel="$here/../../torchlstm/kernels/cpu"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc}

# On a processor without AVX-512 the same text runs on AVX2, so that all of it is checked everywhere.
emulate=()
grep -q avx512_bf16 /proc/cpuinfo || emulate=(-DEMULATE_AVX512 -Wno-psabi)

# build NAME FLAG...
build() {
    local name=$1
    shift
    mkdir "$work/$name"
    printf '%s\0' "$kernel"/{portable,avx2,avx512,bfloat16,dispatch}.c "$here"/{driver,layers,products,threads}.c |
        xargs -0 -P 2 -I{} sh -c 'source=$1 out=$2; shift 2; "$@" -c "$source" -o "$out/$(basename "$source" .c).o"' - {} "$work/$name" \
            "$cc" -std=gnu11 -O1 -g -Wall -I"$kernel" -I"$here" "${emulate[@]}" "$@"
    "$cc" "$@" "$work/$name"/*.o -o "$work/$name/driver" -lm -lpthread
}

# run NAME SEED LAYERS PRODUCTS
run() {
    local start=$SECONDS found
    found=$("$work/$1/driver" "$2" "$3" "$4")  # on a line of its own, or its exit status were lost
    echo "$1: $found, $((SECONDS - start)) s"
}

export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
build memory "${memory[@]}"
run memory 1 500 600
build memory-spread "${memory[@]}" -DSPREAD_THIN
run memory-spread 2 500 600
build threads -fsanitize=thread -DSPREAD_THIN
run threads 3 120 160
echo "all clean"
