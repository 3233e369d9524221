/* attend.cu: checks and launches attention. Few query tokens a sequence: attend_kernel.cuh is the kernel, attend_int4.cu
 * and its kin hold its variants: pairs of code widths × head size 64, 128 × 4 or 8 rows a warp × groups of 32 or more:
 * 40 in all. Chunks of them, by the call's bounds, go to attend_chunk.cu where the card has what that needs. */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attend_args.h"
#include "kernels/cuda/attend_chunk.cuh"
#include "kernels/cuda/cuda_private.h"

enum { SMEM_BYTES = 227 * 1024, MAX_SEQS = 1024 };

typedef struct variant {
    attend_launch_fn *launch;
    int rows, n_warps, slice_log2;
    uint32_t stage_bytes;
    size_t smem;
} variant;

static attend_launch_fn *launcher_of(const bs_kv_format *f)
{
    const int pair = f->k_bits * 100 + f->v_bits;
    switch (pair) {
    case 1616:
    case 808: return bs_attend_launch_8_8;
    case 404: return bs_attend_launch_4_4;
    case 202: return bs_attend_launch_2_2;
    case 402: return bs_attend_launch_4_2;
    case 804: return bs_attend_launch_8_4;
    default: return nullptr;
    }
}

bool bs_cuda_attend_has(const bs_kv_format *format)
{
    return launcher_of(format) != nullptr;
}

/* Query tokens of a sequence, by the launch's bounds. */
static int max_query_of(int max_tokens, int max_seqs)
{
    return (int)(((int64_t)max_tokens + max_seqs - 1) / max_seqs);
}

/* Rows a warp works on: 4 when a sequence's query tokens × G fit, else 8. */
static int rows_of(int max_tokens, int max_seqs, int group)
{
    return (int64_t)max_query_of(max_tokens, max_seqs) * group <= 4 ? 4 : 8;
}

/* Rings, states and spans: what the kernel's own part leaves room for. */
static size_t smem_of(const variant *v, int dim, int n_warps, int max_seqs)
{
    const size_t warp = 2 * (size_t)v->stage_bytes +
                        (size_t)v->rows * (size_t)attend_row_floats(dim) * sizeof(float);
    return (size_t)n_warps * warp + (size_t)max_seqs * sizeof(attend_span);
}

static variant choose_variant(const bs_kv_shape *shape, const bs_cuda_kv_layout &l, int max_tokens,
                              int max_seqs, int group)
{
    const bool f16 = l.k_bits == 16;
    variant v = {};
    v.launch = launcher_of(&shape->format);
    v.rows = rows_of(max_tokens, max_seqs, group);
    v.stage_bytes = f16 ? 8192 : l.k_half > l.v_half ? l.k_half : l.v_half;
    /* An f16 unit is the most tokens that a ring slot holds. */
    v.slice_log2 = 4;
    while (v.slice_log2 < 7 && (uint32_t)shape->head_dim * 2 << (v.slice_log2 + 1) <= v.stage_bytes)
        v.slice_log2++;
    if ((uint32_t)shape->head_dim * 2 << v.slice_log2 > v.stage_bytes)
        v.stage_bytes = (uint32_t)shape->head_dim * 2 << v.slice_log2;
    v.n_warps = attend_max_warps(f16 ? 8 : l.k_bits, f16 ? 8 : l.v_bits, shape->head_dim, v.rows);
    const size_t limit = SMEM_BYTES - attend_fixed_bytes(shape->head_dim, v.rows, v.n_warps);
    while (v.n_warps > 1 && smem_of(&v, shape->head_dim, v.n_warps, max_seqs) > limit) v.n_warps--;
    v.smem = smem_of(&v, shape->head_dim, v.n_warps, max_seqs);
    return v;
}

/* The counters' place must not depend on a launch's shape: they are 0 between launches, other bytes are not.
 */
static size_t parts_bytes(int dim)
{
    return (size_t)2 * ATTEND_MAX_CTAS * 8 * ((size_t)attend_row_floats(dim) + 2) * sizeof(float);
}

/* Partial states of every CTA (two each), then a counter for each row of each job: a sequence's rows and less than a job
 * more. */
static size_t decode_bytes(const bs_kv_shape *shape, int n_heads, int max_seqs, int max_tokens)
{
    const size_t rows = (size_t)max_tokens * (size_t)(n_heads / shape->n_kv_heads) +
                        ((size_t)max_seqs + 1) * 8;
    return parts_bytes(shape->head_dim) + rows * (size_t)shape->n_kv_heads * 4;
}

/* Both paths': a call with smaller bounds may take either. */
size_t bs_cuda_attend_workspace(const bs_device *, const bs_kv_shape *shape, int n_heads, int max_seqs,
                                int max_tokens, int max_pages)
{
    if (max_seqs <= 0 || max_tokens <= 0) return 0;
    return decode_bytes(shape, n_heads, max_seqs, max_tokens) +
           bs_cuda_chunk_workspace(shape, n_heads, max_seqs, max_tokens, max_pages);
}

bool bs_cuda_attend_turns(const bs_device *, const bs_attend_args *a)
{
    const bs_kv_shape *shape = a->pools->shape;
    return (a->attended_type == BS_TYPE_F16 || a->attended_type == BS_TYPE_BF16) &&
           !bs_cuda_chunk_takes(shape, a->n_heads / shape->n_kv_heads,
                                max_query_of(a->max_tokens, a->max_seqs));
}

bs_status bs_cuda_attend(bs_stream *stream, const bs_attend_args *a)
{
    const bs_kv_shape *shape = a->pools->shape;
    const int group = a->n_heads / shape->n_kv_heads;
    if (!bs_cuda_attend_has(&shape->format))
        return bs_fail(BS_STATUS_UNSUPPORTED, "attend: no GPU kernel for %d bits of K and %d of V",
                       shape->format.k_bits, shape->format.v_bits);
    if (a->max_seqs > MAX_SEQS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "attend: %d sequences a step, at most %d", a->max_seqs,
                       MAX_SEQS);
    if (a->q_ld % 4 != 0 || (uintptr_t)a->q % 16 != 0)
        return bs_fail(
            BS_STATUS_RANGE,
            "attend: q at %p with rows of %lld elements: 16-byte address and multiples of 4 needed", a->q,
            (long long)a->q_ld);
    if (((uintptr_t)a->o | (uintptr_t)a->attended | (uintptr_t)a->workspace) % 16 != 0)
        return bs_fail(BS_STATUS_RANGE,
                       "attend: o at %p, attended at %p and workspace at %p: 16-byte addresses needed",
                       (void *)a->o, a->attended, a->workspace);
    if (bs_cuda_chunk_takes(shape, group, max_query_of(a->max_tokens, a->max_seqs)))
        return bs_cuda_attend_chunk(stream, a);
    int n_sms;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "attend", &n_sms));
    const int n_ctas = n_sms < ATTEND_MAX_CTAS ? n_sms : ATTEND_MAX_CTAS;
    attend_params p = {};
    attend_take_args(p, a);
    const variant v = choose_variant(shape, p.layout, a->max_tokens, a->max_seqs, group);
    p.max_query = max_query_of(a->max_tokens, a->max_seqs);
    p.part_o = (float *)a->workspace;
    p.part_ml = (float2 *)(p.part_o + (size_t)2 * ATTEND_MAX_CTAS * 8 * attend_row_floats(shape->head_dim));
    p.arrived = (uint32_t *)((uint8_t *)a->workspace + parts_bytes(shape->head_dim));
    p.stage_bytes = v.stage_bytes;
    p.slice_log2 = v.slice_log2;
    p.overlap = stream->overlap;
    p.attended = a->attended;
    p.attended_type = a->attended_type;
    p.hadamard = shape->format.hadamard;
    return v.launch(&p, v.rows, n_ctas, v.n_warps, v.smem, stream);
}
