/* kv_fixture.h: what the tests of the cache ops share: a device for each instruction set of this machine,
 * pools with canaries around them, a seeded generator, and fp16 by the compiler's own type rather than by
 * half.h. */
#ifndef BS_TEST_KV_FIXTURE_H
#define BS_TEST_KV_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum { KV_N_ISAS = 3, KV_F16_SLOTS = 3, KV_QUANT_SLOTS = 3, KV_POISON = 0xa5 };

typedef struct kv_fixture {
    bs_kv_shape shape;
    bs_device *device;
    bs_stream *stream;
    bs_buffer *f16, *quant;
    bs_kv_pools pools;
    size_t f16_slot_bytes, quant_slot_bytes;
} kv_fixture;

/* Two threads, so that parts are shared out. False where the machine lacks the instruction set. */
static inline bool kv_open_device(bs_isa isa, bs_device **device, bs_stream **stream)
{
    bs_device_config config = {.kind = BS_DEVICE_CPU, .n_threads = 2, .isa = isa};
    if (bs_device_open(&config, device) != BS_STATUS_OK) {
        bs_error_clear();
        return false;
    }
    assert_int_equal(bs_stream_create(*device, stream), BS_STATUS_OK);
    return true;
}

static inline bool kv_open(kv_fixture *f, const bs_kv_shape *shape, bs_isa isa)
{
    memset(f, 0, sizeof *f);
    f->shape = *shape;
    if (!kv_open_device(isa, &f->device, &f->stream)) return false;
    assert_int_equal(bs_kv_slot_bytes(f->device, shape, &f->f16_slot_bytes, &f->quant_slot_bytes),
                     BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(f->device, KV_F16_SLOTS * f->f16_slot_bytes, "f16 pool", &f->f16),
                     BS_STATUS_OK);
    f->pools = (bs_kv_pools){&f->shape, bs_buffer_at(f->f16, 0), NULL, KV_F16_SLOTS, 0};
    memset(f->pools.f16_pool, KV_POISON, KV_F16_SLOTS * f->f16_slot_bytes);
    if (f->quant_slot_bytes == 0) return true;
    assert_int_equal(
        bs_buffer_alloc(f->device, KV_QUANT_SLOTS * f->quant_slot_bytes, "quantized pool", &f->quant),
        BS_STATUS_OK);
    f->pools.quant_pool = bs_buffer_at(f->quant, 0);
    f->pools.n_quant_slots = KV_QUANT_SLOTS;
    memset(f->pools.quant_pool, KV_POISON, KV_QUANT_SLOTS * f->quant_slot_bytes);
    return true;
}

static inline void kv_close_device(bs_device *device, bs_stream *stream)
{
    bs_stream_destroy(stream);
    bs_device_close(device);
}

static inline void kv_close(kv_fixture *f)
{
    bs_buffer_free(f->f16);
    bs_buffer_free(f->quant);
    kv_close_device(f->device, f->stream);
}

/* Fails unless all n bytes are still the poison that kv_open put there. */
static inline void kv_assert_untouched(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n; i++)
        if (b[i] != KV_POISON) fail_msg("byte %zu was written", i);
}

/* splitmix64 */
static inline uint64_t kv_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* 0 ≤ u < 1 */
static inline double kv_uniform(uint64_t *state)
{
    return (double)(kv_random(state) >> 11) * 0x1p-53;
}

static inline double kv_normal(uint64_t *state)
{
    double u = kv_uniform(state), v = kv_uniform(state);
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
}

static inline uint16_t kv_to_f16(float x)
{
    _Float16 h = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

static inline float kv_from_f16(uint16_t bits)
{
    _Float16 h;
    memcpy(&h, &bits, sizeof h);
    return (float)h;
}

#endif
