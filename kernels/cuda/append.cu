/* append.cu: rotates a step's q and k and writes k and v into the open pages.
 *
 * Math     RoPE x·c − y·s, y·c + x·s with rounded products; then H x / √D if the format asks; k and v rounded
 * to fp16, q to the activations' type (docs/kv-format.md, "What is stored").
 * Layout   q [T, H, D], k, v [T, K, D] with their strides; f16 slots of kv_layout.h.
 * Mapping  one launch a step; a warp a vector: H of q, then K of k, then K of v for each token; 4 warps a
 * CTA. A lane has 2 or 4 channels side by side, one load and one store. RoPE's partner is a neighbour (interleaved), comes
 * from the lane half a warp away (all of D rotated), or through shared memory.
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
    bool hadamard, wide; /* wide: a lane's channels are one load */
    bs_cuda_fault fault;
} job;

/* A lane's channels stand side by side: E of them from E · lane on, which one load of 4 to 16 bytes brings. */
template <int E>
static __device__ void load_channels(const void *from, int64_t first, bs_type act, bool wide, float x[E])
{
    if (wide && act == BS_TYPE_F32) {
        if constexpr (E == 4) *(float4 *)x = *(const float4 *)((const float *)from + first);
        else *(float2 *)x = *(const float2 *)((const float *)from + first);
        return;
    }
    if (wide) {
        alignas(8) uint16_t raw[E];
        if constexpr (E == 4) *(uint2 *)raw = *(const uint2 *)((const uint16_t *)from + first);
        else *(uint32_t *)raw = *(const uint32_t *)((const uint16_t *)from + first);
#pragma unroll
        for (int k = 0; k < E; k++) x[k] = bs_cuda_load_act(raw, k, act);
        return;
    }
#pragma unroll
    for (int k = 0; k < E; k++) x[k] = bs_cuda_load_act(from, first + k, act);
}

template <int E>
static __device__ void store_channels(void *to, int64_t first, bs_type act, bool wide, const float x[E])
{
    if (wide && act == BS_TYPE_F32) {
        if constexpr (E == 4) *(float4 *)((float *)to + first) = *(const float4 *)x;
        else *(float2 *)((float *)to + first) = *(const float2 *)x;
        return;
    }
    if (wide) {
        bs_cuda_store_beside<E>(to, first, act, x);
        return;
    }
#pragma unroll
    for (int k = 0; k < E; k++) bs_cuda_store_act(to, first + k, act, x[k]);
}

static __device__ __forceinline__ float rotated(float x, float partner, float2 cs, bool second)
{
    const float own = __fmul_rn(x, cs.x), other = __fmul_rn(partner, cs.y);
    return second ? __fadd_rn(own, other) : __fsub_rn(own, other);
}

/* row: D floats of shared memory of this warp's own. cs: (cos, sin) of the token's pairs. The partner is a neighbour, or the
 * same channel of the lane half a warp away, or anywhere. */
template <int D>
static __device__ void rotate_pairs(float x[D / WARP], float *row, const float2 *cs, int n_rot,
                                    bool interleaved)
{
    enum { E = D / WARP };
    const int lane = threadIdx.x, half = n_rot / 2;
    if (interleaved) {
#pragma unroll
        for (int k = 0; k < E; k += 2) {
            const int channel = E * lane + k;
            if (channel >= n_rot) continue;
            const float2 angle = cs[channel / 2];
            const float a = x[k], b = x[k + 1];
            x[k] = rotated(a, b, angle, false);
            x[k + 1] = rotated(b, a, angle, true);
        }
    } else if (n_rot == D) {
        const bool second = lane >= WARP / 2;
#pragma unroll
        for (int k = 0; k < E; k++) {
            const float partner = __shfl_xor_sync(0xffffffffu, x[k], WARP / 2);
            x[k] = rotated(x[k], partner, cs[E * (lane % (WARP / 2)) + k], second);
        }
    } else {
#pragma unroll
        for (int k = 0; k < E; k++) row[E * lane + k] = x[k];
        __syncwarp();
#pragma unroll
        for (int k = 0; k < E; k++) {
            const int channel = E * lane + k;
            if (channel >= n_rot) continue;
            const bool second = channel >= half;
            const int pair = channel - (second ? half : 0);
            x[k] = rotated(x[k], row[second ? pair : pair + half], cs[pair], second);
        }
    }
}

/* Rounds to fp16 and stores, in pairs, which stand side by side in a page of either kind; every lane learns whether all are
 * finite. */
template <int D>
static __device__ bool store_head(const job &j, const float x[D / WARP], uint32_t slot, int kv_head,
                                  int token, bool is_v)
{
    enum { E = D / WARP };
    uint8_t *page = j.f16_pool + bs_cuda_kv_f16_at(&j.layout, slot, j.args.layer, kv_head, is_v);
    bool finite = true;
#pragma unroll
    for (int k = 0; k < E; k += 2) {
        const __half2 pair = __halves2half2(__float2half_rn(x[k]), __float2half_rn(x[k + 1]));
        const uint32_t bits = *(const uint32_t *)&pair;
        finite = finite && (bits & 0x7c00) != 0x7c00 && (bits & 0x7c000000) != 0x7c000000;
        *(uint32_t *)(page + bs_cuda_kv_f16_byte(D, is_v, token, E * (int)threadIdx.x + k)) = bits;
    }
    return __all_sync(0xffffffffu, finite);
}

template <int D> static __global__ void __launch_bounds__(WARP *VECTORS_A_CTA) append_kernel(job j)
{
    enum { E = D / WARP };
    __shared__ float rows[VECTORS_A_CTA][D];
    bs_cuda_release_next();
    const int n_heads = j.args.n_heads, n_kv_heads = j.layout.n_kv_heads, t = (int)blockIdx.x;
    const int head = (int)(blockIdx.y * VECTORS_A_CTA + threadIdx.y);
    if (head >= n_heads + 2 * n_kv_heads) return;
    const bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
    const int kv_head = head - n_heads - (is_v ? n_kv_heads : 0);
    bs_cuda_wait_before();
    const int slot = j.args.f16_slot[t];
    if (!is_q && slot < 0) return;

    const void *from = is_q ? j.args.q : is_v ? j.args.v : j.args.k;
    const int64_t first = (is_q ? t * j.args.q_ld + head * D : t * j.args.kv_ld + kv_head * D) +
                          E * (int)threadIdx.x;
    alignas(16) float x[E];
    load_channels<E>(from, first, j.args.act, j.wide, x);
    if (!is_v && j.args.n_rot > 0)
        rotate_pairs<D>(x, rows[threadIdx.y], (const float2 *)(j.args.cos_sin + (int64_t)t * j.args.n_rot),
                        j.args.n_rot, j.args.rope_interleaved);
    if (j.hadamard) bs_cuda_hadamard_beside<D>(x);
    if (is_q) {
        store_channels<E>(j.args.q, first, j.args.act, j.wide, x);
        return;
    }
    const int token = j.args.page_token[t];
    if (!store_head<D>(j, x, (uint32_t)slot, kv_head, token, is_v) && threadIdx.x == 0)
        bs_cuda_fault_set(j.fault, j.args.layer, kv_head, (uint32_t)slot, token, is_v);
}

bs_status bs_cuda_append(bs_stream *stream, const bs_append_args *args)
{
    const bs_kv_shape *shape = args->pools->shape;
    job j;
    j.args = *args;
    j.layout = bs_cuda_kv_layout_of(shape);
    j.f16_pool = (uint8_t *)args->pools->f16_pool;
    j.hadamard = shape->format.hadamard;
    j.fault = bs_cuda_stream_fault(stream);
    const int e = shape->head_dim / WARP;
    const uintptr_t addresses = (uintptr_t)args->q | (uintptr_t)args->k | (uintptr_t)args->v;
    j.wide = addresses % ((uintptr_t)e * (uintptr_t)bs_type_block_bytes(args->act)) == 0 &&
             (args->q_ld | args->kv_ld) % e == 0;
    const int n_vectors = args->n_heads + 2 * shape->n_kv_heads;
    const dim3 grid((unsigned)args->n_tokens, (unsigned)((n_vectors + VECTORS_A_CTA - 1) / VECTORS_A_CTA));
    const dim3 block(WARP, VECTORS_A_CTA);
    return bs_cuda_launch(stream, "append", shape->head_dim == 128 ? append_kernel<128> : append_kernel<64>,
                          grid, block, 0, j);
}
