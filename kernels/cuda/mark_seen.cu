/* mark_seen.cu: sets the bits of a few ids in a bitmap of the vocabulary.
 *
 * Math     bitmap[id / 64] |= 1 << id % 64 for each id ≥ 0.
 * Layout   ids [n] int32, bitmap of 64-bit words.
 * Mapping  a thread an id. Two ids may share a word: atomic or, whose order does not matter.
 * Cost     a launch.
 * Numerics exact.
 * Limits   ids inside the bitmap.
 * Measured not worth it. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS) mark_kernel(uint64_t *bitmap, const int32_t *ids, int n)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= n || ids[i] < 0) return;
    atomicOr((unsigned long long *)bitmap + ids[i] / 64, 1ull << ids[i] % 64);
}

bs_status bs_cuda_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n)
{
    return bs_cuda_launch(stream, "mark_seen", mark_kernel, dim3((unsigned)((n - 1) / THREADS + 1)),
                          dim3(THREADS), 0, bitmap, ids, n);
}
