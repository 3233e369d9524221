/* tokens.cu: a drawn token on its way into the next step, without the host.
 *
 * Math: a copy. Layout: ids, slots and `last` as kernels.h says. Mapping: a thread an id. Cost: a launch. */
#include "kernels/cuda/overlap.h"

static constexpr int THREADS = 128;

static __global__ void keep_kernel(int32_t *last, const int32_t *token, const int32_t *seq, int n)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n && seq[i] >= 0) last[seq[i]] = token[i];
}

static __global__ void feed_kernel(int32_t *ids, int n, const int32_t *last)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n && ids[i] < 0) ids[i] = last[-1 - ids[i]];
}

bs_status bs_cuda_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                              int n)
{
    return bs_cuda_launch(stream, "keep_tokens", keep_kernel, dim3((unsigned)((n + THREADS - 1) / THREADS)),
                          dim3(THREADS), 0, last, token, seq, n);
}

bs_status bs_cuda_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last)
{
    return bs_cuda_launch(stream, "feed_tokens", feed_kernel, dim3((unsigned)((n + THREADS - 1) / THREADS)),
                          dim3(THREADS), 0, ids, n, last);
}
