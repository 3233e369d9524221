/* dense_fixture.h: arrays on either side of gpu_fixture.h, of any activation type, freed together at the end
 * of a case. */
#ifndef BS_TEST_DENSE_FIXTURE_H
#define BS_TEST_DENSE_FIXTURE_H

#include "tests/kernels/gpu_fixture.h"

enum { DENSE_MAX_BUFFERS = 256 };

static bs_buffer *dense_buffers[DENSE_MAX_BUFFERS];
static int dense_n_buffers;

/* Room for bytes on the side, poisoned (0xff: NaN in every type) or a copy of from. */
static inline void *dense_put(gpu_side *side, const void *from, size_t bytes)
{
    bs_buffer *buffer;
    void *poison = NULL;
    assert_true(dense_n_buffers < DENSE_MAX_BUFFERS);
    assert_int_equal(bs_buffer_alloc(side->device, bytes + 64, "test", &buffer), BS_STATUS_OK);
    dense_buffers[dense_n_buffers++] = buffer;
    if (!from) {
        assert_non_null(poison = malloc(bytes + 64));
        memset(poison, 0xff, bytes + 64);
        gpu_put(side, bs_buffer_at(buffer, 0), poison, bytes + 64);
        free(poison);
    } else if (bytes > 0) {
        gpu_put(side, bs_buffer_at(buffer, 0), from, bytes);
    }
    return bs_buffer_at(buffer, 0);
}

static inline void dense_free(void)
{
    while (dense_n_buffers > 0) bs_buffer_free(dense_buffers[--dense_n_buffers]);
}

static inline size_t dense_size(bs_type type)
{
    return type == BS_TYPE_F32 ? 4 : 2;
}

static inline void dense_store(void *to, size_t i, bs_type type, float x)
{
    if (type == BS_TYPE_F32) ((float *)to)[i] = x;
    else ((uint16_t *)to)[i] = type == BS_TYPE_F16 ? kv_to_f16(x) : bs_f32_to_bf16(x);
}

static inline float dense_load(const void *from, size_t i, bs_type type)
{
    if (type == BS_TYPE_F32) return ((const float *)from)[i];
    const uint16_t bits = ((const uint16_t *)from)[i];
    return type == BS_TYPE_F16 ? kv_from_f16(bits) : bs_bf16_to_f32(bits);
}

/* Half an ulp of a number of the type, relative. */
static inline double dense_rounding(bs_type type)
{
    return type == BS_TYPE_F32 ? 0x1p-24 : type == BS_TYPE_F16 ? 0x1p-11 : 0x1p-8;
}

/* n numbers in [−1, 1), as the type holds them; the caller frees. */
static inline void *dense_noise(size_t n, bs_type type, uint64_t *seed)
{
    void *x = malloc(n * 4 + 4);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) dense_store(x, i, type, (float)(2 * kv_uniform(seed) - 1));
    return x;
}

/* n bytes from the side; the caller frees. */
static inline void *dense_get(gpu_side *side, const void *from, size_t bytes)
{
    void *x = malloc(bytes + 1);
    assert_non_null(x);
    if (bytes > 0) gpu_get(side, x, from, bytes);
    return x;
}

static const bs_type dense_types[] = {BS_TYPE_F32, BS_TYPE_F16, BS_TYPE_BF16};

#endif
