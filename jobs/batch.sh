#!/bin/bash
# batch.sh: batch.sbatch without Slurm: a file of requests, by mpirun on this host or on those of a hostfile.
#
#   export BITSHARD_MODEL=model.gguf BITSHARD_BATCH=in.jsonl BITSHARD_OUTPUT=out.jsonl BITSHARD_RANKS=8
#   batch.sh [OPTION of bitshard generate]…
#
# Ctrl-C or SIGTERM saves the answers under way and ends with exit 85; the same command again goes on, and leaves out what
# is answered. After a lost rank it does so by itself.
#
#   BITSHARD_MODEL           GGUF file or Hugging Face directory
#   BITSHARD_BATCH           the requests (a file)
#   BITSHARD_OUTPUT          the answers                                                    [out.jsonl]
#   BITSHARD_SNAPSHOT        where answers under way are saved                              [BITSHARD_OUTPUT.snapshots]
#   BITSHARD_SNAPSHOT_EVERY  how often                                                      [10m]
#   BITSHARD_RANKS           how many ranks                                                 [1]
#   BITSHARD_LAUNCH          how they are started, as "mpirun -np 16 --hostfile hosts"      [mpirun -np BITSHARD_RANKS]
#   BITSHARD_RETRIES         runs in a row that may be lost without having come further     [2]
#   BITSHARD_PAUSE           seconds before another run                                     [5]
# and every option of generate, as BITSHARD_BATCH_SIZE=32.
: "${BITSHARD_MODEL:?names no model}" "${BITSHARD_BATCH:?names no requests}"
output=${BITSHARD_OUTPUT:-out.jsonl}
snapshots=${BITSHARD_SNAPSHOT:-$output.snapshots}
read -r -a launch <<<"${BITSHARD_LAUNCH:-mpirun -np ${BITSHARD_RANKS:-1}}"

say() { echo "batch: $(date '+%F %T') $*" >&2; }

# bash runs a trap while it waits, not while a program has the foreground. USR2 tells the program to save and end, in the
# time that this needs; mpirun would give it one second after a TERM.
pid='' stop=''
trap 'stop=1; [ -z "$pid" ] || kill -USR2 "$pid"' INT TERM HUP
trap '[ -z "$pid" ] || kill -USR1 "$pid"' USR1

state() { { ls -1R "$snapshots" && stat -c %s "$output"; } 2>/dev/null | cksum; }
tries=0
while [ -z "$stop" ]; do
    before=$(state)
    "${launch[@]}" bitshard generate --model "$BITSHARD_MODEL" --batch "$BITSHARD_BATCH" --output "$output" \
        --snapshot "$snapshots" --snapshot-every "${BITSHARD_SNAPSHOT_EVERY:-10m}" --resume auto "$@" </dev/null &
    pid=$!
    # A wait that a trap cut short is over before the program is.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    pid=''
    case $code in
    0) say "done: $output"; exit 0 ;;
    2) exit 2 ;;
    85) say "stopped; the same command goes on"; exit 85 ;;
    esac
    [ -z "$stop" ] || exit "$code"
    # A lost rank: again, as long as each run comes further than the one before.
    if [ "$(state)" != "$before" ]; then tries=0; else tries=$((tries + 1)); fi
    [ "$tries" -le "${BITSHARD_RETRIES:-2}" ] || { say "exit $code, and $tries runs in a row came no further: given up"; exit "$code"; }
    say "exit $code; again"
    sleep "${BITSHARD_PAUSE:-5}" # ranks of other hosts may take a while to notice
done
exit 85
