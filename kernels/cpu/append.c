/* append.c: rotates a step's q and k, and writes k and v into the open pages.
 *
 * Math (docs/kv-format.md): RoPE, x·c − y·s and y·c + x·s with rounded products; the Hadamard on q, k and v
 * if the format asks; rounding to fp16, nearest even. The archive is built without contraction, so that the
 * compiler's vectors give the scalar code's bits; fp16 rounding is F16C where the device has it, the same
 * bits again. Cost: a few thousand operations a token and layer, nothing beside the projections that made q,
 * k and v; hence no hand-written RoPE.
 */
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fault.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/pool.h"

/* cs holds (cos, sin) of each of the n_rot / 2 pairs. */
static void rotate_pairs(float *x, const float *cs, int n_rot, bool interleaved)
{
    const int n_pairs = n_rot / 2;
    if (interleaved) {
        for (int i = 0; i < n_pairs; i++) {
            float a = x[2 * i], b = x[2 * i + 1], c = cs[2 * i], s = cs[2 * i + 1];
            x[2 * i] = a * c - b * s;
            x[2 * i + 1] = b * c + a * s;
        }
    } else {
        float *y = x + n_pairs;
        for (int i = 0; i < n_pairs; i++) {
            float a = x[i], b = y[i], c = cs[2 * i], s = cs[2 * i + 1];
            x[i] = a * c - b * s;
            y[i] = b * c + a * s;
        }
    }
}

static void round_scalar(const float *x, bs_f16 *out, int n)
{
    for (int i = 0; i < n; i++) out[i] = bs_f32_to_f16(x[i]);
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) static void round_avx2(const float *x, bs_f16 *out, int n)
{
    for (int i = 0; i < n; i += 8) {
        __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(out + i), half);
    }
}
#endif

/* Rounds one head to fp16; false if anything is NaN or infinity after it. n is a multiple of 8. */
static bool store_head(bs_isa isa, const float *x, bs_f16 *out, int n)
{
#if defined(__x86_64__)
    if (isa != BS_ISA_SCALAR) round_avx2(x, out, n);
    else
#endif
        round_scalar(x, out, n);
    return bs_cpu_all_finite(out, (size_t)n);
}

typedef struct append_job {
    bs_stream *stream;
    const bs_append_args *args;
    bs_cpu_kv_layout layout;
    bs_isa isa;
} append_job;

static void rotate_head(const append_job *job, int t, float *head, bool rope)
{
    const bs_append_args *args = job->args;
    if (rope && args->n_rot > 0)
        rotate_pairs(head, args->cos_sin + (size_t)t * (size_t)args->n_rot, args->n_rot,
                     args->rope_interleaved);
    if (args->pools->shape->format.hadamard) bs_cpu_hadamard(job->isa, head, job->layout.head_dim);
}

/* Writes one K or V head of an owned token. */
static void store_token(const append_job *job, int t, int kv_head, bool is_v)
{
    const bs_append_args *args = job->args;
    const int d = job->layout.head_dim, token = args->page_token[t];
    const uint32_t slot = (uint32_t)args->f16_slot[t];
    const float *x = (const float *)(is_v ? args->v : args->k) + t * args->kv_ld + kv_head * d;
    float head[BS_MAX_HEAD_DIM];
    memcpy(head, x, (size_t)d * sizeof *head);
    rotate_head(job, t, head, !is_v);
    bs_f16 *page = bs_cpu_f16_page(&job->layout, args->pools->f16_pool, slot, args->layer, kv_head, is_v);
    if (!store_head(job->isa, head, page + token * d, d))
        bs_cpu_fault_set(job->stream, args->layer, kv_head, slot, token, is_v);
}

static void append_token(void *context, int t)
{
    const append_job *job = context;
    const bs_append_args *args = job->args;
    float *q = (float *)args->q + t * args->q_ld;
    for (int h = 0; h < args->n_heads; h++) rotate_head(job, t, q + h * job->layout.head_dim, true);
    if (args->f16_slot[t] < 0) return;
    for (int h = 0; h < job->layout.n_kv_heads; h++) {
        store_token(job, t, h, false);
        store_token(job, t, h, true);
    }
}

bs_status bs_cpu_append(bs_stream *stream, const bs_append_args *args)
{
    if (args->act != BS_TYPE_F32)
        return bs_fail(BS_STATUS_UNSUPPORTED, "append of %s: a CPU's activations are F32",
                       bs_type_name(args->act));
    append_job job = {stream, args, bs_cpu_kv_layout_of(args->pools->shape), stream->device->info.isa};
    bs_pool_run(bs_stream_pool(stream), args->n_tokens, append_token, &job);
    return BS_STATUS_OK;
}
