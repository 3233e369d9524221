/* append.cu: rotates a step's q and k and writes k and v into the open pages.
 *
 * Math     RoPE x·c − y·s, y·c + x·s with rounded products; then H x / √D if the format asks; k and v rounded
 * to fp16, q to the activations' type (docs/kv-format.md, "What is stored").
 * Layout   q [T, H, D], k, v [T, K, D] with their strides; f16 slots of kv_layout.h.
 * Mapping  one launch a step; a warp a vector: H of q, then K of k, then K of v for each token; 4 warps a
 * CTA. RoPE's partner may be any channel, so it comes through shared memory.
 * Cost     a token of 32/8 heads of 128 is 48 vectors, 33 KB read and written in bf16: the launch, 2 to 3 us,
 * is all of it; 2,048 tokens of prefill are 67 MB, 14 us at 4.66 TB/s.
 * Numerics with F32 activations k and v are the CPU's bits, and q too.
 * Limits   D 64 and 128, n_rot ≤ D; any strides and alignment of whole elements. NaN or infinity in k or v of
 * an owned token: the fault is recorded and the values are stored as they are.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/fault.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { WARP = 32, VECTORS_A_CTA = 4 };

typedef struct job {
    bs_append_args args; /* its pools are host memory: not for the kernel */
    bs_cuda_kv_layout layout;
    uint8_t *f16_pool;
    bool hadamard;
    bs_cuda_fault fault;
} job;

/* row: D floats of shared memory of this warp's own. cs: (cos, sin) of the token's pairs. */
template <int D>
static __device__ void rotate_pairs(float x[D / WARP], float *row, const float *cs, int n_rot,
                                    bool interleaved)
{
    const int lane = threadIdx.x, half = n_rot / 2;
#pragma unroll
    for (int k = 0; k < D / WARP; k++) row[lane + WARP * k] = x[k];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < D / WARP; k++) {
        const int channel = lane + WARP * k;
        if (channel >= n_rot) continue;
        const bool second = interleaved ? channel % 2 : channel >= half;
        const int pair = interleaved ? channel / 2 : channel - (second ? half : 0);
        const int partner = interleaved ? channel ^ 1 : second ? pair : pair + half;
        const float c = cs[2 * pair], s = cs[2 * pair + 1];
        const float own = __fmul_rn(x[k], c), other = __fmul_rn(row[partner], s);
        x[k] = second ? __fadd_rn(own, other) : __fsub_rn(own, other);
    }
}

/* Rounds to fp16 and stores; every lane learns whether all are finite. */
template <int D>
static __device__ bool store_head(const job &j, const float x[D / WARP], uint32_t slot, int kv_head,
                                  int token, bool is_v)
{
    uint8_t *page = j.f16_pool + bs_cuda_kv_f16_at(&j.layout, slot, j.args.layer, kv_head, is_v);
    bool finite = true;
#pragma unroll
    for (int k = 0; k < D / WARP; k++) {
        const __half rounded = __float2half_rn(x[k]);
        finite = finite && (__half_as_ushort(rounded) & 0x7c00) != 0x7c00;
        *(__half *)(page + bs_cuda_kv_f16_byte(D, is_v, token, (int)threadIdx.x + WARP * k)) = rounded;
    }
    return __all_sync(0xffffffffu, finite);
}

template <int D> static __global__ void __launch_bounds__(WARP *VECTORS_A_CTA) append_kernel(job j)
{
    __shared__ float rows[VECTORS_A_CTA][D];
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int n_kv_heads = j.layout.n_kv_heads, vectors_a_token = j.args.n_heads + 2 * n_kv_heads;
    const int vector = (int)(blockIdx.x * VECTORS_A_CTA + threadIdx.y), t = vector / vectors_a_token;
    if (t >= j.args.n_tokens) return;
    const int head = vector % vectors_a_token, kv_head = (head - j.args.n_heads) % n_kv_heads;
    const bool is_q = head < j.args.n_heads, is_v = head >= j.args.n_heads + n_kv_heads;
    const int slot = j.args.f16_slot[t];
    if (!is_q && slot < 0) return;

    const void *from = is_q ? j.args.q : is_v ? j.args.v : j.args.k;
    const int64_t first = is_q ? t * j.args.q_ld + head * D : t * j.args.kv_ld + kv_head * D;
    float x[D / WARP];
#pragma unroll
    for (int k = 0; k < D / WARP; k++)
        x[k] = bs_cuda_load_act(from, first + (int)threadIdx.x + WARP * k, j.args.act);
    if (!is_v && j.args.n_rot > 0)
        rotate_pairs<D>(x, rows[threadIdx.y], j.args.cos_sin + (int64_t)t * j.args.n_rot, j.args.n_rot,
                        j.args.rope_interleaved);
    if (j.hadamard) bs_cuda_hadamard<D>(x);
    if (is_q) {
#pragma unroll
        for (int k = 0; k < D / WARP; k++)
            bs_cuda_store_act(j.args.q, first + (int)threadIdx.x + WARP * k, j.args.act, x[k]);
        return;
    }
    const int token = j.args.page_token[t];
    if (!store_head<D>(j, x, (uint32_t)slot, kv_head, token, is_v) && threadIdx.x == 0)
        bs_cuda_fault_set(j.fault, j.args.layer, kv_head, (uint32_t)slot, token, is_v);
}

bs_status bs_cuda_append(bs_stream *stream, const bs_append_args *args)
{
    const bs_kv_shape *shape = args->pools->shape;
    const int64_t n = (int64_t)args->n_tokens * (args->n_heads + 2 * shape->n_kv_heads);
    if (n > INT32_MAX - VECTORS_A_CTA)
        return bs_fail(BS_STATUS_RANGE, "append: %d tokens are too many for one launch", args->n_tokens);
    job j;
    j.args = *args;
    j.layout = bs_cuda_kv_layout_of(shape);
    j.f16_pool = (uint8_t *)args->pools->f16_pool;
    j.hadamard = shape->format.hadamard;
    j.fault = bs_cuda_stream_fault(stream);
    const unsigned n_ctas = (unsigned)((n + VECTORS_A_CTA - 1) / VECTORS_A_CTA);
    const dim3 block(WARP, VECTORS_A_CTA);
    return bs_cuda_launch(stream, "append", shape->head_dim == 128 ? append_kernel<128> : append_kernel<64>,
                          dim3(n_ctas), block, 0, j);
}
