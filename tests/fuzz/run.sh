#!/bin/sh
# run.sh BUILD TARGET [RUNS [MAX_LEN]]: fuzzes one target (gguf, safetensors, tokenizer, tokenizer_json, chat, batch) of a build made with
#   ../configure --enable-fuzzers CC=../tests/fuzz/cc.sh --without-cuda && make && make check TESTS=
# for RUNS executions (10^7), from the committed corpus; what it finds goes to BUILD/fuzz/TARGET, a crash to
# BUILD/fuzz/TARGET.crash-*. Ends with libFuzzer's own account: executions, coverage, peak memory.
set -eu
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
build=$1 target=$2 runs=${3:-10000000} max_len=${4:-4096}
mkdir -p "$build/fuzz/$target"
exec "$build/tests/fuzz/fuzz_$target" -runs="$runs" -max_len="$max_len" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$build/fuzz/$target." "$build/fuzz/$target" "$here/corpus/$target"
