#!/usr/bin/env bash
# The C kernel under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on threads of the driver's own.
#   CC=clang EMULATE=1 tests/sanitize/run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel="$here/../../torchlstm/engines/cpu/kernel"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc}

# On a processor without AVX-512 the same text runs on AVX2, so that all of it is checked everywhere.
emulate=()
if [[ ${EMULATE:-} ]] || ! grep -q avx512_bf16 /proc/cpuinfo; then emulate=(-DEMULATE_AVX512 -Wno-psabi); fi

# compile NAME FLAG... < sources, each ended by a zero: objects to the build's folder
compile() {
    local out=$work/$1
    shift
    xargs -0 -P 2 -I{} sh -c 'source=$1 out=$2; shift 2; "$@" -c "$source" -o "$out/$(basename "$source" .c).o"' - {} "$out" \
        "$cc" -std=gnu11 -O1 -g -Wall -I"$kernel" -I"$here" "${emulate[@]}" "$@"
}

# build NAME FLAG...
build() {
    local name=$1
    shift
    mkdir "$work/$name"
    printf '%s\0' "$kernel"/{avx512,vnni,avx2,bfloat16,portable,dispatch}.c "$here"/{driver,layers,products,threads,pace}.c | compile "$name" "$@"
    "$cc" "$@" "$work/$name"/*.o -o "$work/$name/driver" -lm -lpthread
}

# spread NAME FLAG...: the build again, as NAME-spread, with all threads on little work; only dispatch.c knows the difference
spread() {
    local name=$1
    shift
    cp -r "$work/$name" "$work/$name-spread"
    printf '%s\0' "$kernel/dispatch.c" | compile "$name-spread" "$@" -DSPREAD_THIN
    "$cc" "$@" "$work/$name-spread"/*.o -o "$work/$name-spread/driver" -lm -lpthread
}

# run NAME SEED LAYERS PRODUCTS THREADS
run() {
    local name=$1 start=$SECONDS found
    shift
    # On a line of its own, or its exit status were lost.
    found=$("$work/$name/driver" "$@") || { echo "$name: failed, driver $*" >&2; exit 1; }
    echo "$name: $found, $((SECONDS - start)) s"
}

export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
build memory "${memory[@]}"
run memory 1 500 600 1
spread memory "${memory[@]}"
run memory-spread 2 500 600 1
build threads -fsanitize=thread -DSPREAD_THIN
run threads 3 120 160 2
echo "all clean"
