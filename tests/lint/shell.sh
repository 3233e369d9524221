#!/bin/sh
# shell.sh: every script of the tree passes shellcheck.
command -v shellcheck >/dev/null 2>&1 || { echo "no shellcheck here"; exit 77; }
cd "${srcdir:-.}" || exit 1
# shellcheck disable=SC2046  # names have no spaces
exec shellcheck quickstart .ci/run build-aux/mpi-launch build-aux/mpi-test build-aux/gpu-launch tests/lint/*.sh \
    $(find . \( -path ./jobs/\* -o -path ./tests/\* \) \( -name '*.sh' -o -name '*.sbatch' \) ! -path './tests/lint/*')
