/* bench_quantize.c: one case of quantize: many pages at once, as prefill leaves them, or one, as decode does.
 *
 * Checked first: codes and parameters of a few (page, layer, head) bit for bit against the scalar quantizer
 * of a CPU. A call quantizes its own pages; there are as many calls in a rotation as it takes to leave the
 * L2. */
#include "config.h"

#include "src/cli/bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SOURCES = 4096, N_CHECKED = 8 };

typedef struct quantize {
    bs_bench *bench;
    bs_bench_cache cache; /* sources and pools only */
    bs_buffer *slots;     /* source slots of all calls, then quantized ones */
    int n_pages, n_calls; /* pages of a call */
} quantize;

static bs_status queue_pages(void *context, int i)
{
    quantize *z = context;
    const uint32_t *from = bs_buffer_at(z->slots, 0), *to = from + z->n_calls * z->n_pages;
    const size_t at = (size_t)(i % z->n_calls) * (size_t)z->n_pages;
    return bs_op_quantize(z->bench->stream,
                          &(bs_quantize_args){&z->cache.pools, z->n_pages, from + at, to + at});
}

static bs_status set_slots(quantize *z)
{
    const uint32_t n = (uint32_t)(z->n_calls * z->n_pages);
    uint32_t *slots = malloc(2 * n * sizeof *slots);
    bs_status status;
    if (!slots) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %u slots", n);
    bs_bench_shuffle(slots, n, 6);
    bs_bench_shuffle(slots + n, n, 7);
    BS_TRY_GOTO(bs_buffer_alloc(z->bench->device, 2 * n * sizeof *slots, "slots", &z->slots), err_slots);
    BS_TRY_GOTO(bs_copy_to_device(z->bench->stream, bs_buffer_at(z->slots, 0), slots, 2 * n * sizeof *slots),
                err_slots);
    status = bs_stream_sync(z->bench->stream);
err_slots:
    free(slots);
    return status;
}

static bs_status set_up(quantize *z, const bs_bench_case *c)
{
    bs_bench_cache *k = &z->cache;
    size_t f16_bytes, quant_bytes;
    k->bench = z->bench;
    k->item = c;
    k->shape = (bs_kv_shape){.n_layers = c->n_layers, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    BS_TRY(bs_kv_format_parse(c->kv, &k->shape.format));
    if (c->plain_v) k->shape.format.v_encoder = BS_V_ENCODER_PLAIN;
    BS_TRY(bs_kv_slot_bytes(z->bench->device, &k->shape, &f16_bytes, &quant_bytes));
    z->n_pages = (int)(c->context / BS_PAGE_TOKENS);
    double calls = ceil((z->bench->gpu ? BS_BENCH_ROTATE_GPU : BS_BENCH_ROTATE_CPU) /
                        ((double)z->n_pages * f16_bytes));
    z->n_calls = calls * z->n_pages > MOST_SOURCES ? MOST_SOURCES / z->n_pages : (int)calls;
    const uint32_t n = (uint32_t)(z->n_calls * z->n_pages);
    BS_TRY(bs_bench_fill_sources(k, (int)n, 0));
    BS_TRY(bs_buffer_alloc(z->bench->device, n * quant_bytes, "quantized pages", &k->quant));
    k->pools.quant_pool = bs_buffer_at(k->quant, 0);
    k->pools.n_quant_slots = n;
    return set_slots(z);
}

/* ---- check ---- */

/* One head page quantized by a CPU's scalar code, packed into [codes of K, parameters, codes of V,
 * parameters]. */
static bs_status quantize_on_cpu(const bs_bench_cache *k, const bs_f16 *page, uint8_t *canonical)
{
    bs_kv_shape shape = {
        .n_layers = 1, .n_kv_heads = 1, .head_dim = k->shape.head_dim, .format = k->shape.format};
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&shape.format, shape.head_dim);
    bs_device_config config = {.kind = BS_DEVICE_CPU, .n_threads = 1, .isa = BS_ISA_SCALAR};
    bs_device *device = NULL;
    bs_stream *stream = NULL;
    bs_buffer *f16 = NULL, *quant = NULL;
    size_t f16_bytes, quant_bytes;
    bs_status status;
    uint32_t slot = 0;
    BS_TRY(bs_device_open(&config, &device));
    BS_TRY_GOTO(bs_stream_create(device, &stream), err_close);
    BS_TRY_GOTO(bs_kv_slot_bytes(device, &shape, &f16_bytes, &quant_bytes), err_close);
    BS_TRY_GOTO(bs_buffer_alloc(device, f16_bytes, "f16 page", &f16), err_close);
    BS_TRY_GOTO(bs_buffer_alloc(device, quant_bytes, "quantized page", &quant), err_close);
    bs_kv_pools pools = {&shape, bs_buffer_at(f16, 0), bs_buffer_at(quant, 0), 1, 1};
    bs_kv_page_ref in = {.k = (void *)page, .v = (void *)(page + BS_PAGE_TOKENS * shape.head_dim)};
    bs_kv_page_ref out = {.k = canonical, .k_meta = canonical + bytes.k};
    out.v = canonical + bytes.k + bytes.k_meta;
    out.v_meta = (uint8_t *)out.v + bytes.v;
    BS_TRY_GOTO(bs_op_unpack(stream, &(bs_pack_args){.pools = &pools, .n = 1, .pages = &in}), err_close);
    BS_TRY_GOTO(bs_op_quantize(stream, &(bs_quantize_args){&pools, 1, &slot, &slot}), err_close);
    status = bs_op_pack(stream, &(bs_pack_args){.pools = &pools, .quantized = true, .n = 1, .pages = &out});
err_close:
    bs_buffer_free(f16);
    bs_buffer_free(quant);
    bs_stream_destroy(stream);
    bs_device_close(device);
    return status;
}

/* Entry `at` of the slots of all calls. */
static bs_status check_page(const quantize *z, uint32_t from, uint32_t to, int layer, int kv_head,
                            bs_buffer *staging)
{
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&z->cache.shape.format, z->cache.shape.head_dim);
    const size_t n = bytes.k + bytes.k_meta + bytes.v + bytes.v_meta;
    uint8_t *mine = malloc(2 * n), *cpu = mine + n, *at = bs_buffer_at(staging, 0);
    bs_status status;
    if (!mine) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for a page");
    bs_kv_page_ref ref = {.slot = to,
                          .layer = layer,
                          .kv_head = kv_head,
                          .k = at,
                          .k_meta = at + bytes.k,
                          .v = at + bytes.k + bytes.k_meta,
                          .v_meta = at + bytes.k + bytes.k_meta + bytes.v};
    BS_TRY_GOTO(
        bs_op_pack(z->bench->stream,
                   &(bs_pack_args){.pools = &z->cache.pools, .quantized = true, .n = 1, .pages = &ref}),
        err_mine);
    BS_TRY_GOTO(bs_copy_to_host(z->bench->stream, mine, at, n), err_mine);
    BS_TRY_GOTO(bs_stream_sync(z->bench->stream), err_mine);
    BS_TRY_GOTO(quantize_on_cpu(&z->cache, bs_bench_source(&z->cache, (int)from, layer, kv_head), cpu),
                err_mine);
    size_t i = 0;
    while (i < n && mine[i] == cpu[i]) i++;
    if (i < n)
        status = bs_fail(BS_STATUS_MISMATCH,
                         "slot %u, layer %d, KV head %d: canonical byte %zu is %d, a CPU's is %d", to, layer,
                         kv_head, i, mine[i], cpu[i]);
err_mine:
    free(mine);
    return status;
}

static bs_status check(quantize *z)
{
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&z->cache.shape.format, z->cache.shape.head_dim);
    const int n = z->n_calls * z->n_pages;
    uint32_t *slots = malloc(2 * (size_t)n * sizeof *slots);
    bs_buffer *staging = NULL;
    bs_status status;
    if (!slots) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d slots", n);
    for (int i = 0; i < z->n_calls; i++) BS_TRY_GOTO(queue_pages(z, i), err_slots);
    BS_TRY_GOTO(bs_stream_check(z->bench->stream), err_slots);
    BS_TRY_GOTO(bs_buffer_alloc(z->bench->device, bytes.k + bytes.k_meta + bytes.v + bytes.v_meta,
                                "canonical page", &staging),
                err_slots);
    BS_TRY_GOTO(
        bs_copy_to_host(z->bench->stream, slots, bs_buffer_at(z->slots, 0), 2 * (size_t)n * sizeof *slots),
        err_slots);
    BS_TRY_GOTO(bs_stream_sync(z->bench->stream), err_slots);
    for (int i = 0; i < N_CHECKED; i++) {
        int at = (int)((int64_t)i * (n - 1) / (N_CHECKED - 1)), layer = (i * 5 + 1) % z->cache.shape.n_layers;
        BS_TRY_GOTO(
            check_page(z, slots[at], slots[n + at], layer, (i * 3) % z->cache.shape.n_kv_heads, staging),
            err_slots);
    }
err_slots:
    bs_buffer_free(staging);
    free(slots);
    return status;
}

/* ---- the case ---- */

static bs_status run(quantize *z, const bs_bench_case *c, int number)
{
    bs_bench_row row = {.item = c, .number = number, .mode = "plain"};
    BS_TRY(set_up(z, c));
    BS_TRY(check(z));
    BS_TRY(bs_bench_time(z->bench, queue_pages, z, z->n_calls, &row.us, NULL));
    BS_TRY(check(z));
    row.bytes = bs_bench_bytes(c, &z->cache.shape.format);
    return bs_bench_report(z->bench, &row);
}

bs_status bs_bench_quantize(bs_bench *bench, const bs_bench_case *item, int number)
{
    quantize z = {.bench = bench};
    bs_status status = run(&z, item, number);
    bs_bench_cache_close(&z.cache);
    bs_buffer_free(z.slots);
    return status;
}
