#!/bin/bash
# bench.sh: bench.sbatch without Slurm: by mpirun on this host, or on those of a hostfile.
#
#   BITSHARD_RANKS=8 bench.sh [OPTION of bitshard bench decode]…
#
# Tables go to standard output, rows to BITSHARD_BENCH_DIR as CSV, beside a text that says on what and with which commands.
#
#   BITSHARD_BENCH_DIR       where the results go                                       [bench-DATE]
#   BITSHARD_MODEL           for decode; random:NAME needs no file                      [random:llama-3.1-8b]
#   BITSHARD_RANKS           how many ranks                                             [1]
#   BITSHARD_LAUNCH          how they are started, as "mpirun -np 16 --hostfile hosts"  [mpirun -np BITSHARD_RANKS]
# and every option of bench, as BITSHARD_CONTEXTS=32K,1M.
directory=${BITSHARD_BENCH_DIR:-bench-$(date +%Y%m%d-%H%M%S)}
model=${BITSHARD_MODEL:-random:llama-3.1-8b}
read -r -a launch <<<"${BITSHARD_LAUNCH:-mpirun -np ${BITSHARD_RANKS:-1}}"

mkdir -p "$directory" || exit 1
failed=0
# measure NAME COMMAND…: what it ran goes into commands.txt; one that fails does not stop the others.
measure() {
    name=$1
    shift
    echo "$*" >>"$directory/commands.txt"
    echo "== $name: $*"
    "$@" </dev/null || { echo "== $name: exit $?"; failed=1; }
}
{ date '+%F %T'; hostname; "${launch[@]}" bitshard info; } >"$directory/machine.txt" 2>&1 </dev/null
cat "$directory/machine.txt"
measure kernel bitshard bench kernel all --csv "$directory/kernel.csv"
measure comm "${launch[@]}" bitshard bench comm --csv "$directory/comm.csv"
measure decode "${launch[@]}" bitshard bench decode --model "$model" --csv "$directory/decode.csv" "$@"
exit $failed
