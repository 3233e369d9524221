/* gpu_fixture.h: what the tests of GPU kernels share: a CPU device, whose bits are the reference, and GPU 0
 * beside it, with the same pools and the same calls. Everything goes through device buffers and copies, so a
 * line of a test serves either side. */
#ifndef BS_TEST_GPU_FIXTURE_H
#define BS_TEST_GPU_FIXTURE_H

#include "tests/kernels/kv_fixture.h"

enum { GPU_CPU_SIDE, GPU_GPU_SIDE, GPU_N_SIDES, GPU_SKIP = 77, GPU_STAGE_BYTES = 1 << 20 };

typedef struct gpu_side {
    bs_device *device;
    bs_stream *stream;
    bs_buffer *f16, *quant, *stage; /* stage: room for what a call takes or gives */
    bs_kv_pools pools;
    size_t f16_slot_bytes, quant_slot_bytes;
} gpu_side;

static inline void gpu_open_side(gpu_side *side, bs_device_kind kind)
{
    bs_device_config config = {.kind = kind, .n_threads = 1};
    memset(side, 0, sizeof *side);
    assert_int_equal(bs_device_open(&config, &side->device), BS_STATUS_OK);
    assert_int_equal(bs_stream_create(side->device, &side->stream), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(side->device, GPU_STAGE_BYTES, "stage", &side->stage), BS_STATUS_OK);
}

/* `TEST short`: a few cases of each kind, so that compute-sanitizer ends in seconds (CONTRIBUTING.md). */
static bool gpu_short;

/* Whether case n of many is run. */
static inline bool gpu_runs_case(int n, int one_in)
{
    return !gpu_short || n % one_in == 0;
}

/* Exits with 77 where there is no GPU. For main, before cmocka runs. */
static inline void gpu_need_one(int argc, char **argv)
{
    gpu_short = argc == 2 && strcmp(argv[1], "short") == 0;
    if (argc > 1 && !gpu_short) {
        printf("usage: %s [short]\n", argv[0]);
        exit(2);
    }
    if (bs_device_count_gpus() > 0) return;
    printf("skipped: this process sees no GPU\n");
    exit(GPU_SKIP);
}

/* A cmocka group set-up and its end; *state is the two sides. */
static inline int gpu_open(void **state)
{
    static gpu_side sides[GPU_N_SIDES];
    gpu_open_side(&sides[GPU_CPU_SIDE], BS_DEVICE_CPU);
    gpu_open_side(&sides[GPU_GPU_SIDE], BS_DEVICE_CUDA);
    *state = sides;
    return 0;
}

static inline int gpu_close(void **state)
{
    gpu_side *sides = *state;
    for (int i = 0; i < GPU_N_SIDES; i++) {
        bs_buffer_free(sides[i].stage);
        bs_stream_destroy(sides[i].stream);
        bs_device_close(sides[i].device);
    }
    return 0;
}

static inline void gpu_put(gpu_side *side, void *to, const void *from, size_t bytes)
{
    assert_int_equal(bs_copy_to_device(side->stream, to, from, bytes), BS_STATUS_OK);
    assert_int_equal(bs_stream_sync(side->stream), BS_STATUS_OK);
}

static inline void gpu_get(gpu_side *side, void *to, const void *from, size_t bytes)
{
    assert_int_equal(bs_copy_to_host(side->stream, to, from, bytes), BS_STATUS_OK);
    assert_int_equal(bs_stream_sync(side->stream), BS_STATUS_OK);
}

/* Device address of the stage, `offset` bytes in; the caller keeps within GPU_STAGE_BYTES. */
static inline void *gpu_stage(gpu_side *side, size_t offset)
{
    assert_true(offset < GPU_STAGE_BYTES);
    return bs_buffer_at(side->stage, offset);
}

static inline void gpu_poison(gpu_side *side, void *at, size_t bytes)
{
    void *poison = malloc(bytes);
    assert_non_null(poison);
    memset(poison, KV_POISON, bytes);
    gpu_put(side, at, poison, bytes);
    free(poison);
}

/* Poisoned pools of a side. shape must outlive them. */
static inline void gpu_open_pools(gpu_side *side, const bs_kv_shape *shape, uint32_t n_f16, uint32_t n_quant)
{
    assert_int_equal(bs_kv_slot_bytes(side->device, shape, &side->f16_slot_bytes, &side->quant_slot_bytes),
                     BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(side->device, n_f16 * side->f16_slot_bytes, "f16 pool", &side->f16),
                     BS_STATUS_OK);
    assert_int_equal(
        bs_buffer_alloc(side->device, n_quant * side->quant_slot_bytes, "quantized pool", &side->quant),
        BS_STATUS_OK);
    side->pools = (bs_kv_pools){shape, bs_buffer_at(side->f16, 0), bs_buffer_at(side->quant, 0), n_f16,
                                n_quant};
    gpu_poison(side, side->pools.f16_pool, n_f16 * side->f16_slot_bytes);
    if (n_quant > 0 && side->quant_slot_bytes > 0)
        gpu_poison(side, side->pools.quant_pool, n_quant * side->quant_slot_bytes);
}

static inline void gpu_close_pools(gpu_side *side)
{
    bs_buffer_free(side->f16);
    bs_buffer_free(side->quant);
    side->f16 = side->quant = NULL;
}

/* A copy of a pool on the host; the caller frees it. */
static inline uint8_t *gpu_copy_pool(gpu_side *side, bool quantized)
{
    size_t bytes = quantized ? side->pools.n_quant_slots * side->quant_slot_bytes
                             : side->pools.n_f16_slots * side->f16_slot_bytes;
    uint8_t *copy = malloc(bytes);
    assert_non_null(copy);
    gpu_get(side, copy, quantized ? side->pools.quant_pool : side->pools.f16_pool, bytes);
    return copy;
}

/* Puts K and V [128][D] of one (layer, head) into an f16 slot. NULL: left as it is. */
static inline void gpu_fill_page(gpu_side *side, uint32_t slot, int layer, int kv_head, const uint16_t *k,
                                 const uint16_t *v)
{
    const size_t bytes = (size_t)(BS_PAGE_TOKENS * side->pools.shape->head_dim) * sizeof *k;
    bs_kv_page_ref page = {slot, layer, kv_head, NULL, NULL, NULL, NULL};
    if (k) gpu_put(side, page.k = gpu_stage(side, 0), k, bytes);
    if (v) gpu_put(side, page.v = gpu_stage(side, bytes), v, bytes);
    bs_pack_args args = {&side->pools, false, 1, &page};
    assert_int_equal(bs_op_unpack(side->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_sync(side->stream), BS_STATUS_OK);
}

#endif
