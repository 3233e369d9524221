/* random.cu: random weights and random cache pages, where a file or a prefill would take minutes.
 *
 * Math     noise.h: a Philox word an element, the sum of its bytes times a constant, rounded once.
 * Layout   weights [rows, cols] bf16 or fp16; an f16 slot as kv_layout.h orders it.
 * Mapping  a thread four elements (a Philox call). Weights: a grid-stride loop over groups of four, 8-byte stores.
 * A page: a CTA a (layer, KV head, K or V), 256 threads; the scattered 2-byte stores stay in L2 until a line is whole.
 * Cost     about 80 integer operations a call: 8B weights are 2e9 calls, 1.6e11 operations, some 10 ms on an H200;
 * a million tokens of Llama-3.1-8B's cache are 1.7e10 calls, 0.1 s.
 * Numerics the CPU's bits: integers, one product, one rounding.
 * Limits   columns, row length and first element multiples of 4; 64-bit sizes.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/cuda_private.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/noise.h"

#include <cuda_fp16.h>

enum { THREADS = 256, CTAS_PER_SM = 8 };

static __device__ __forceinline__ float noise(uint32_t word, float step)
{
    return __fmul_rn((float)bs_noise_sum(word), step);
}

/* Round to nearest, ties to even; finite. */
static __device__ __forceinline__ uint16_t bf16_of(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static __global__ void __launch_bounds__(THREADS) fill_kernel(bs_random_fill_args a, float step)
{
    const int64_t groups_a_row = a.n_cols / 4, n = a.n_rows * groups_a_row;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        const int64_t row = i / groups_a_row, group = i % groups_a_row;
        uint32_t words[4];
        uint16_t x[4];
        bs_noise_of_tensor(a.seed, a.tensor, (uint64_t)((a.first + row * a.ld) / 4 + group), words);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float y = noise(words[j], step);
            x[j] = a.type == BS_TYPE_F16 ? __half_as_ushort(__float2half_rn(y)) : bf16_of(y);
        }
        uint2 packed = make_uint2(x[0] | (uint32_t)x[1] << 16, x[2] | (uint32_t)x[3] << 16);
        *(uint2 *)((char *)a.out + (size_t)row * a.row_bytes + (size_t)group * sizeof packed) = packed;
    }
}

bs_status bs_cuda_random_fill(bs_stream *stream, const bs_random_fill_args *args)
{
    int n_sms;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "random_fill", &n_sms));
    fill_kernel<<<n_sms * CTAS_PER_SM, THREADS, 0, bs_cuda_stream(stream)>>>(*args,
                                                                             args->std / BS_NOISE_SUM_STD);
    return bs_cuda_launched("random_fill");
}

typedef struct page_job {
    bs_cuda_kv_layout layout;
    uint8_t *f16_pool;
    uint64_t seed;
    uint32_t slot, page, first_kv_head;
    float step;
} page_job;

static __global__ void __launch_bounds__(THREADS) page_kernel(page_job j)
{
    const int part = (int)blockIdx.x, is_v = part % 2, head = part / 2 % j.layout.n_kv_heads,
              layer = part / 2 / j.layout.n_kv_heads, dim = j.layout.head_dim;
    uint8_t *to = j.f16_pool + bs_cuda_kv_f16_at(&j.layout, j.slot, layer, head, is_v);
    for (int i = (int)threadIdx.x * 4; i < BS_PAGE_TOKENS * dim; i += THREADS * 4) {
        uint32_t words[4];
        bs_noise_of_page(j.seed, j.page, (uint32_t)layer, j.first_kv_head + (uint32_t)head, (uint32_t)is_v,
                         (uint32_t)i / 4, words);
#pragma unroll
        for (int e = 0; e < 4; e++)
            *(__half *)(to + bs_cuda_kv_f16_byte(dim, is_v, i / dim, i % dim + e)) = __float2half_rn(
                noise(words[e], j.step));
    }
}

bs_status bs_cuda_random_page(bs_stream *stream, const bs_random_page_args *args)
{
    page_job j;
    j.layout = bs_cuda_kv_layout_of(args->pools->shape);
    j.f16_pool = (uint8_t *)args->pools->f16_pool;
    j.seed = args->seed;
    j.slot = args->slot;
    j.page = (uint32_t)args->page;
    j.first_kv_head = (uint32_t)args->first_kv_head;
    j.step = 1.0f / BS_NOISE_SUM_STD;
    page_kernel<<<(unsigned)(2 * j.layout.n_layers * j.layout.n_kv_heads), THREADS, 0,
                  bs_cuda_stream(stream)>>>(j);
    return bs_cuda_launched("random_page");
}
