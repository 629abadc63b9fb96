#!/usr/bin/env bash
# The C kernel on random cases.
#   tests/sanitize/run.sh        under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on threads of the
#                                driver's own; CC=clang EMULATE=1 for another compiler, and all instruction sets
#   tests/sanitize/run.sh arm    as it is shipped for 64-bit Arm, in an emulator, on OpenMP's threads too; wants Debian's
#                                qemu-user and gcc-aarch64-linux-gnu
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel="$here/../../torchlstm/engines/cpu/kernel"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc}

flags=(-std=gnu11 -O1 -g -Wall) emulator=() team=threads
if [ "${1:-}" = arm ]; then
    cc=${CC:-aarch64-linux-gnu-gcc} flags=(-std=gnu11 -O3 -g0 -Wall -DEMULATED) emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
fi

# On a processor without AVX-512 the same text runs on AVX2, so that all of it is checked everywhere.
emulate=()
if [[ ${EMULATE:-} ]] || ! grep -q avx512_bf16 /proc/cpuinfo; then emulate=(-DEMULATE_AVX512 -Wno-psabi); fi

# compile NAME FLAG... < sources, each ended by a zero: objects to the build's folder
compile() {
    local out=$work/$1
    shift
    xargs -0 -P 2 -I{} sh -c 'source=$1 out=$2; shift 2; "$@" -c "$source" -o "$out/$(basename "$source" .c).o"' - {} "$out" \
        "$cc" "${flags[@]}" -I"$kernel" -I"$here" "${emulate[@]}" "$@"
}

# build NAME FLAG...: on the threads of $team.c
build() {
    local name=$1
    shift
    mkdir "$work/$name"
    printf '%s\0' "$kernel"/{avx512,amx,amx_bfloat16,vnni,avx2,bfloat16,portable,dispatch}.c "$here"/{driver,layers,products,pace}.c "$here/$team.c" | compile "$name" "$@"
    local runtime=()
    if [ "$team" = openmp ]; then runtime=(-Wl,--wrap=GOMP_parallel -lgomp); fi
    "$cc" "$@" "$work/$name"/*.o -o "$work/$name/driver" "${runtime[@]}" -lm -lpthread
}

# spread NAME FLAG...: the build again, as NAME-spread, with all threads on little work, and without AMX: by vnni.c and bfloat16.c.  Only
# dispatch.c knows the difference.
spread() {
    local name=$1
    shift
    cp -r "$work/$name" "$work/$name-spread"
    printf '%s\0' "$kernel/dispatch.c" | compile "$name-spread" "$@" -DSPREAD_THIN -DWITHOUT_AMX
    "$cc" "$@" "$work/$name-spread"/*.o -o "$work/$name-spread/driver" -lm -lpthread
}

# run NAME SEED LAYERS PRODUCTS THREADS [big]
run() {
    local name=$1 start=$SECONDS found
    shift
    # On a line of its own, or its exit status were lost.
    found=$("${emulator[@]}" "$work/$name/driver" "$@") || { echo "$name: failed, driver $*" >&2; exit 1; }
    echo "$name: $found, $((SECONDS - start)) s"
}

# tile NAME: the loop of the largest tile of float and double keeps its sums in registers, 24 multiply-adds a turn
tile() {
    "${cc%gcc}objdump" -d --no-show-raw-insn "$work/$1/portable.o" | awk '
        /^[0-9a-f]+ </ { inside = /<tile_64_(float|double)_/; name = $2 }
        !inside { next }
        { n++; sub(":", "", $1); place[$1] = n; op[n] = $2; line[n] = $0 }
        $2 == "b.ne" && $3 in place && !(name in seen) {
            sums = loads = stack = 0
            for (i = place[$3]; i <= n; i++) {
                sums += op[i] == "fmla"; loads += op[i] ~ /^ld/; stack += line[i] ~ /\[sp/
            }
            if (!sums) next
            seen[name]; tiles++
            print name, sums, "multiply-adds,", loads, "loads,", stack, "of the stack"
            if (sums != 24 || stack) bad = 1
        }
        END { exit bad || tiles != 2 }' || { echo "$1: not the loop that it should be" >&2; exit 1; }
}

if [ "${1:-}" = arm ]; then
    export OMP_WAIT_POLICY=passive                                      # threads are more than processors
    build arm
    tile arm
    run arm 1 30 40 1
    team=openmp
    build arm-openmp -DSPREAD_THIN
    run arm-openmp 2 30 40 2
    run arm-openmp 3 0 0 2 big
    echo "all right"
    exit
fi

export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
build memory "${memory[@]}"
run memory 1 500 600 1
spread memory "${memory[@]}"
run memory-spread 2 500 600 1
build threads -fsanitize=thread -DSPREAD_THIN
run threads 3 120 160 2
echo "all clean"
