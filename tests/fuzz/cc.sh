#!/bin/sh
# cc.sh: the compiler of a fuzzing build: clang, but gcc for kernels/, whose SIMD is written in gcc's dialect and whose
# code no fuzz target runs.
case " $* " in
*' '-c' '*kernels/*) ;;
*) exec clang "$@" ;;
esac
for word; do
    shift
    case $word in -fsanitize=* | -fno-sanitize-recover=*) ;; *) set -- "$@" "$word" ;; esac
done
exec gcc "$@"
