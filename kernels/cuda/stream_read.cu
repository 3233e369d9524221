/* stream_read.cu: every byte once: the read bandwidth that attention's figures are measured against.
 *
 * Math     sink ^= the exclusive or of all 32-bit words.
 * Layout   data in 16-byte chunks; a tile is UNROLL x THREADS chunks, 16 KB.
 * Mapping  8 CTAs of 256 threads an SM, all resident; CTA c reads tiles c, c + grid, …, a thread UNROLL
 * chunks of a tile, each warp load 512 contiguous bytes. The rest of less than a tile: chunk by chunk. Cost
 * bytes / bandwidth; 131 KB in flight an SM, 4.66 TB/s x 0.8 us / 132 SMs asks for 28 KB. Numerics exact.
 * Limits   16-byte aligned, a multiple of 16 bytes, 64-bit sizes.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/cuda_private.h"

enum { THREADS = 256, CTAS_PER_SM = 8, UNROLL = 4 };

/* Through L2 only: nothing is read twice. */
static __device__ __forceinline__ uint4 load(const uint4 *at)
{
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(at));
    return x;
}

static __device__ __forceinline__ uint32_t fold(uint4 x)
{
    return x.x ^ x.y ^ x.z ^ x.w;
}

static __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
    stream_read_kernel(const uint4 *data, size_t n_chunks, uint32_t *sink)
{
    const size_t tile = THREADS * UNROLL, n_tiles = n_chunks / tile;
    uint32_t sum = 0;
    for (size_t t = blockIdx.x; t < n_tiles; t += gridDim.x) {
        const uint4 *at = data + t * tile + threadIdx.x;
        uint4 x[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) x[u] = load(at + u * THREADS);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) sum ^= fold(x[u]);
    }
    size_t i = n_tiles * tile + (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i < n_chunks; i += (size_t)gridDim.x * THREADS) sum ^= fold(load(data + i));
    sum = __reduce_xor_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0 && sum != 0) atomicXor(sink, sum);
}

bs_status bs_cuda_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink)
{
    int device, n_sms;
    BS_TRY(bs_cuda_status(cudaGetDevice(&device), "stream_read"));
    BS_TRY(bs_cuda_status(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device),
                          "stream_read"));
    stream_read_kernel<<<n_sms * CTAS_PER_SM, THREADS, 0, bs_cuda_stream(stream)>>>((const uint4 *)data,
                                                                                    bytes / 16, sink);
    return bs_cuda_launched("stream_read");
}
