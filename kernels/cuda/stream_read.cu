/* stream_read.cu: every byte once: the read bandwidth that attention's figures are measured against.
 *
 * Math     sink ^= the exclusive or of all 32-bit words.
 * Layout   data in 16-byte chunks.
 * Mapping  4 CTAs of 512 threads an SM, all resident; the grid walks the data as one front, 8 chunks a thread
 * on their way at a time, a whole grid apart. (Tiles of 16 KB a CTA: 6 % slower on an H200.)
 * Cost     bytes / bandwidth; 262 KB in flight an SM, 4.66 TB/s x 0.8 us / 132 SMs asks for 28 KB.
 * Numerics exact.
 * Limits   16-byte aligned, a multiple of 16 bytes, 64-bit sizes.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/cuda_private.h"

enum { THREADS = 512, CTAS_PER_SM = 4, UNROLL = 8 };

static __device__ __forceinline__ uint32_t fold(uint4 x)
{
    return x.x ^ x.y ^ x.z ^ x.w;
}

static __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
    stream_read_kernel(const uint4 *data, size_t n_chunks, uint32_t *sink)
{
    const size_t stride = (size_t)gridDim.x * THREADS;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    uint32_t sum = 0;
    for (; i + (UNROLL - 1) * stride < n_chunks; i += UNROLL * stride) {
        uint4 x[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) x[u] = __ldcs(data + i + u * stride);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) sum ^= fold(x[u]);
    }
    for (; i < n_chunks; i += stride) sum ^= fold(__ldcs(data + i));
    sum = __reduce_xor_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0 && sum != 0) atomicXor(sink, sum);
}

bs_status bs_cuda_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink)
{
    int n_sms;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "stream_read", &n_sms));
    stream_read_kernel<<<n_sms * CTAS_PER_SM, THREADS, 0, bs_cuda_stream(stream)>>>((const uint4 *)data,
                                                                                    bytes / 16, sink);
    return bs_cuda_launched("stream_read");
}
