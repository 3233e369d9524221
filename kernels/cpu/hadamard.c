/* hadamard.c: butterflies of stride 1, 2, 4 … D/2 in f32, then one multiplication.
 *
 * Each output of a butterfly is one addition, so any order of work gives the same bits as long as the strides
 * ascend. SIMD: strides below the vector's width pair lanes inside a vector: partner + (own with the sign
 * flipped in the upper lane of the pair) is u + v below and u − v above, in one shuffle, one xor and one
 * addition. Wider strides pair vectors.
 */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/hadamard.h"

static void hadamard_scalar(float *x, int dim, float scale)
{
    for (int stride = 1; stride < dim; stride *= 2) {
        for (int i = 0; i < dim; i++) {
            if (i & stride) continue;
            float u = x[i], v = x[i + stride];
            x[i] = u + v;
            x[i + stride] = u - v;
        }
    }
    for (int i = 0; i < dim; i++) x[i] *= scale;
}

#if defined(__x86_64__)

typedef float v8f __attribute__((vector_size(32)));
typedef int v8i __attribute__((vector_size(32)));
typedef float v16f __attribute__((vector_size(64)));
typedef int v16i __attribute__((vector_size(64)));

/* dim floats in vectors of `width`, vf and vi their types, lanes the vector 0, 1, 2 … */
#define BUTTERFLIES(width, vf, vi, lanes)                                                                    \
    do {                                                                                                     \
        vf v[BS_MAX_HEAD_DIM / (width)];                                                                     \
        const int n = dim / (width);                                                                         \
        memcpy(v, x, (size_t)dim * sizeof *x);                                                               \
        for (int i = 0; i < n; i++) {                                                                        \
            for (int stride = 1; stride < (width); stride *= 2) {                                            \
                vi flip = ((lanes & stride) != 0) & INT_MIN;                                                 \
                v[i] = __builtin_shuffle(v[i], lanes ^ stride) + (vf)((vi)v[i] ^ flip);                      \
            }                                                                                                \
        }                                                                                                    \
        for (int stride = 1; stride < n; stride *= 2) {                                                      \
            for (int i = 0; i < n; i++) {                                                                    \
                if (i & stride) continue;                                                                    \
                vf low = v[i], high = v[i + stride];                                                         \
                v[i] = low + high;                                                                           \
                v[i + stride] = low - high;                                                                  \
            }                                                                                                \
        }                                                                                                    \
        for (int i = 0; i < n; i++) v[i] *= scale;                                                           \
        memcpy(x, v, (size_t)dim * sizeof *x);                                                               \
    } while (0)

__attribute__((target("avx2"))) static void hadamard_avx2(float *x, int dim, float scale)
{
    const v8i lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    BUTTERFLIES(8, v8f, v8i, lanes);
}

__attribute__((target("avx512f,avx512dq"))) static void hadamard_avx512(float *x, int dim, float scale)
{
    const v16i lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    BUTTERFLIES(16, v16f, v16i, lanes);
}

#endif

void bs_cpu_hadamard(bs_isa isa, float *x, int dim)
{
    const float scale = (float)(1.0 / sqrt((double)dim));
#if defined(__x86_64__)
    if (dim % 16 == 0 && dim <= BS_MAX_HEAD_DIM) {
        if (isa == BS_ISA_AVX512) {
            hadamard_avx512(x, dim, scale);
            return;
        }
        if (isa == BS_ISA_AVX2) {
            hadamard_avx2(x, dim, scale);
            return;
        }
    }
#endif
    hadamard_scalar(x, dim, scale);
}
