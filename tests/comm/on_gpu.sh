#!/bin/sh
# on_gpu.sh: the tests of this directory with ranks on GPUs: over NCCL, graphs included, and over MPI through host
# memory; several ranks on one GPU where there are not enough (build-aux/gpu-launch). Skipped (77) without a GPU.
src=${top_srcdir:-.}
build=${top_builddir:-.}
"$build/tests/comm/test_comm.mpi" gpus || exit
for ranks in ${BS_TEST_GPU_RANKS:-2 4}; do
    for transport in nccl mpi; do
        for program in test_comm test_merge; do
            echo "== $program, $ranks ranks, $transport"
            timeout "${BS_TEST_SECONDS:-120}" sh "$src/build-aux/gpu-launch" "$ranks" "$build/tests/comm/$program.mpi" gpu $transport </dev/null
            code=$?
            [ $code -eq 0 ] || { echo "== $program, $ranks ranks, $transport: exit $code"; exit $code; }
        done
    done
done
