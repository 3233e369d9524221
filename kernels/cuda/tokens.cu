/* tokens.cu: a drawn token on its way into the next step, without the host.
 *
 * Math: a copy. Layout: ids, slots and `last` as kernels.h says. Mapping: a thread an id. Cost: a launch. */
#include "kernels/cuda/cuda_private.h"

static constexpr int THREADS = 128;

static __global__ void keep_kernel(int32_t *last, const int32_t *token, const int32_t *seq, int n)
{
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n && seq[i] >= 0) last[seq[i]] = token[i];
}

static __global__ void feed_kernel(int32_t *ids, int n, const int32_t *last)
{
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n && ids[i] < 0) ids[i] = last[-1 - ids[i]];
}

bs_status bs_cuda_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                              int n)
{
    keep_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, bs_cuda_stream(stream)>>>(last, token, seq, n);
    return bs_cuda_launched("keep_tokens");
}

bs_status bs_cuda_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last)
{
    feed_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, bs_cuda_stream(stream)>>>(ids, n, last);
    return bs_cuda_launched("feed_tokens");
}
