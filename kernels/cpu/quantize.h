/* quantize.h: the quantizer of one page of one (layer, KV head), once for each instruction set. All give the
 * same bits; the rule is docs/kv-format.md's. Callers have made sure that the page is finite. */
#ifndef BS_CPU_QUANTIZE_H
#define BS_CPU_QUANTIZE_H

#include "kernels/cpu/kv_layout.h"

enum { BS_KV_MAX_ZERO = 28687 }; /* |z|, in sixteenths of a code */
static const float BS_KV_MIN_SCALE = 0x1p-14f, BS_KV_MAX_SCALE = 65504.0f;
/* A group far from zero: s is at least |m| / 1790, which keeps z within its bounds. */
static const float BS_KV_ZERO_REACH = 1790.0f;

/* What is taken off each end of the range of a 2-bit group, as a share of its width; f32, nearest. */
static inline float bs_cpu_kv_margin(int group, bool k_without_norm)
{
    float margin = group == 32 ? 0.075f : group == 64 ? 0.1f : 0.125f;
    return k_without_norm ? margin * 0.5f : margin;
}

/* Products of a token's K and what its codes stand for are rounded to 2⁻¹³ by adding this: sums of them are exact. */
static const float BS_KV_PRODUCT_ROUND = 1536.0f;

/* The norm of a token of 2-bit K. norm, S: n and Σ k² of the rule; B: Σ x·x̂. */
static inline bs_f16 bs_cpu_kv_corrected_norm(bs_f16 norm, float S, float B)
{
    float n = bs_f16_to_f32(norm), e = S / n / B;
    if (!(e >= 0.5f * n && e <= 2.0f * n)) return norm;
    e = e < BS_KV_MIN_SCALE ? BS_KV_MIN_SCALE : e > BS_KV_MAX_SCALE ? BS_KV_MAX_SCALE : e;
    return bs_f32_to_f16(e);
}

/* k, v: [128][D]. record: kv_layout.h; the K kernels write its K parts, the V kernels its V parts, all of
 * them. */
typedef void bs_cpu_quantize_k_fn(const bs_cpu_kv_layout *l, const bs_f16 *k, uint8_t *record);
typedef void bs_cpu_quantize_v_fn(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v,
                                  uint8_t *record);

bs_cpu_quantize_k_fn bs_cpu_quantize_k_scalar, bs_cpu_quantize_k_avx2, bs_cpu_quantize_k_avx512;
bs_cpu_quantize_v_fn bs_cpu_quantize_v_scalar, bs_cpu_quantize_v_avx2, bs_cpu_quantize_v_avx512;

#endif
