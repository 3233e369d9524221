/* quantize.h: the quantizer of one page of one (layer, KV head), once for each instruction set. All give the
 * same bits; the rule is docs/kv-format.md's. Callers have made sure that the page is finite. */
#ifndef BS_CPU_QUANTIZE_H
#define BS_CPU_QUANTIZE_H

#include "kernels/cpu/kv_layout.h"

enum { BS_KV_MAX_ZERO = 28687 }; /* |z|, in sixteenths of a code */
static const float BS_KV_MIN_SCALE = 0x1p-14f, BS_KV_MAX_SCALE = 65504.0f;
/* A group far from zero: s is at least |m| / 1790, which keeps z within its bounds. */
static const float BS_KV_ZERO_REACH = 1790.0f;

/* Ranges tried for V at 2 bits, in this order: the middle's neighbourhood of this share of (min, max). */
enum { BS_KV_N_RANGES = 9 };
static const float BS_KV_RANGES[BS_KV_N_RANGES] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f};

/* k, v: [128][D]. record: kv_layout.h; the K kernels write its K parts, the V kernels its V parts, all of
 * them. */
typedef void bs_cpu_quantize_k_fn(const bs_cpu_kv_layout *l, const bs_f16 *k, uint8_t *record);
typedef void bs_cpu_quantize_v_fn(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v,
                                  uint8_t *record);

bs_cpu_quantize_k_fn bs_cpu_quantize_k_scalar, bs_cpu_quantize_k_avx2, bs_cpu_quantize_k_avx512;
bs_cpu_quantize_v_fn bs_cpu_quantize_v_scalar, bs_cpu_quantize_v_avx2, bs_cpu_quantize_v_avx512;

#endif
