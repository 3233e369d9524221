#!/bin/bash
# long-context.sh: long-context.sbatch without Slurm: by mpirun on this host, or on those of a hostfile.
#
#   export BITSHARD_MODEL=model.gguf BITSHARD_PROMPT_FILE=book.txt BITSHARD_OUTPUT=answer.txt BITSHARD_RANKS=8
#   long-context.sh [OPTION of bitshard generate]…
#
# Ctrl-C or SIGTERM takes a snapshot and ends with exit 85; SIGUSR1 takes one and goes on. The same command again goes on
# where that was, on any number of ranks. After a lost rank it does so by itself.
#
#   BITSHARD_MODEL           GGUF file or Hugging Face directory
#   BITSHARD_PROMPT_FILE     the text
#   BITSHARD_OUTPUT          the answer's file                                              [answer.txt]
#   BITSHARD_SNAPSHOT        the snapshot's directory                                       [BITSHARD_OUTPUT.snapshot]
#   BITSHARD_SNAPSHOT_EVERY  how often besides                                              [10m]
#   BITSHARD_RANKS           how many ranks                                                 [1]
#   BITSHARD_LAUNCH          how they are started, as "mpirun -np 16 --hostfile hosts"      [mpirun -np BITSHARD_RANKS]
#   BITSHARD_RETRIES         runs in a row that may be lost without having come further     [2]
#   BITSHARD_PAUSE           seconds before another run                                     [5]
# and every option of generate, as BITSHARD_KV=int2.
: "${BITSHARD_MODEL:?names no model}" "${BITSHARD_PROMPT_FILE:?names no text}"
output=${BITSHARD_OUTPUT:-answer.txt}
snapshot=${BITSHARD_SNAPSHOT:-$output.snapshot}
read -r -a launch <<<"${BITSHARD_LAUNCH:-mpirun -np ${BITSHARD_RANKS:-1}}"

say() { echo "long-context: $(date '+%F %T') $*" >&2; }

# bash runs a trap while it waits, not while a program has the foreground. USR2 tells the program to take a snapshot and
# end, in the time that this needs; mpirun would give it one second after a TERM.
pid='' stop=''
trap 'stop=1; [ -z "$pid" ] || kill -USR2 "$pid"' INT TERM HUP
trap '[ -z "$pid" ] || kill -USR1 "$pid"' USR1

state() { { ls -1 "$snapshot" && stat -c %s "$output"; } 2>/dev/null | cksum; }
tries=0
while [ -z "$stop" ]; do
    before=$(state)
    "${launch[@]}" bitshard generate --model "$BITSHARD_MODEL" --prompt-file "$BITSHARD_PROMPT_FILE" --output "$output" \
        --snapshot "$snapshot" --snapshot-every "${BITSHARD_SNAPSHOT_EVERY:-10m}" --resume auto "$@" </dev/null &
    pid=$!
    # A wait that a trap cut short is over before the program is.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    pid=''
    case $code in
    0) say "done: $output"; exit 0 ;;
    2) exit 2 ;;
    85) say "stopped with a snapshot; the same command goes on from there"; exit 85 ;;
    esac
    [ -z "$stop" ] || exit "$code"
    # A lost rank: again, as long as each run comes further than the one before.
    if [ "$(state)" != "$before" ]; then tries=0; else tries=$((tries + 1)); fi
    [ "$tries" -le "${BITSHARD_RETRIES:-2}" ] || { say "exit $code, and $tries runs in a row came no further: given up"; exit "$code"; }
    say "exit $code; again"
    sleep "${BITSHARD_PAUSE:-5}" # ranks of other hosts may take a while to notice
done
exit 85
