/* bench_data.c: lengths, page lists, pools and their contents.
 *
 * K and V are normal noise; each channel has an offset, and each head four channels of K that are four times
 * larger, as real keys have. The bank has N_KINDS such heads in N_VARIANTS pages each; a (source, layer,
 * head) takes one of them so that neighbours differ in all three directions: a kernel that reads the wrong
 * page, layer or head shows. */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_KINDS = 8,
    N_VARIANTS = 32,
    N_SOURCES = 32,
    PAGE = BS_PAGE_TOKENS,
    UNPACK_BATCH = 256,
    CHUNK_LAYERS = 2
};
static const double source_bytes_gpu = 1e9, source_bytes_cpu = 128e6;

/* ---- geometry ---- */

/* From a 1024th of the sum to an eighth of it, sum/1024 · 128^(u^γ), u from 0 to 1 over the sequences. */
static double ragged_length(const bs_bench_case *c, int i, double gamma)
{
    return (double)c->context / 1024 * pow(128, pow((double)i / (c->n_seqs - 1), gamma));
}

/* With the γ that gives the sum, in mixed order. At least 9 sequences. */
static void ragged_lengths(const bs_bench_case *c, int32_t *length)
{
    const int n = c->n_seqs, step = n % 7 ? 7 : 1; /* a step without a common divisor mixes the order */
    double low = 0.01, high = 100;
    for (int k = 0; k < 100; k++) {
        double gamma = (low + high) / 2, sum = 0;
        for (int i = 0; i < n; i++) sum += ragged_length(c, i, gamma);
        if (sum > (double)c->context) low = gamma;
        else high = gamma;
    }
    int64_t left = c->context;
    for (int i = 0; i < n; i++) left -= length[i * step % n] = (int32_t)ragged_length(c, i, low);
    length[0] += (int32_t)left; /* what rounding left over, a token a sequence */
}

void bs_bench_lengths(const bs_bench_case *c, int32_t *length)
{
    if (c->ragged) {
        ragged_lengths(c, length);
        return;
    }
    for (int b = 0; b < c->n_seqs; b++) length[b] = (int32_t)c->context;
}

/* Pages first … last − 1 of a sequence are quantized (docs/kv-format.md; the step is a decode). */
static void quantized_range(const bs_kv_format *f, int n_query, int64_t length, int64_t *first, int64_t *last)
{
    *first = *last = f->n_sink;
    if (f->k_bits == 16) return;
    int64_t end = (length - n_query) / PAGE - f->n_recent;
    if (end > *first) *last = end;
}

void bs_bench_visible(const bs_bench_case *c, const bs_kv_format *format, int64_t length,
                      int64_t *quant_pages, int64_t *f16_tokens)
{
    int64_t first, last, low = c->window ? length - c->n_query - c->window + 1 : 0;
    if (low < 0) low = 0;
    quantized_range(format, c->n_query, length, &first, &last);
    int64_t seen = first > low / PAGE ? first : low / PAGE; /* first quantized page that is seen */
    int64_t before = first * PAGE - low;                    /* sink tokens that are seen */
    *quant_pages = last > seen ? last - seen : 0;
    if (last <= first) {
        *f16_tokens = length - low;
    } else {
        *f16_tokens = (before > 0 ? before : 0) + length - (low > last * PAGE ? low : last * PAGE);
    }
}

double bs_bench_bytes(const bs_bench_case *c, const bs_kv_format *format)
{
    if (c->op == BS_BENCH_READ) return (double)c->context;
    if (c->op == BS_BENCH_GEMV)
        return (double)c->n_rows * (double)(c->n_cols / bs_type_block(c->type)) *
               bs_type_block_bytes(c->type);
    const bs_kv_page_bytes page = bs_kv_canonical_bytes(format, c->head_dim);
    const double quant = format->k_bits == 16 ? 0 : (double)(page.k + page.k_meta + page.v + page.v_meta),
                 f16_token = 4.0 * c->head_dim;
    if (c->op == BS_BENCH_QUANTIZE)
        return (double)c->context * c->n_kv_heads * c->n_layers * (quant / BS_PAGE_TOKENS + f16_token);
    int32_t *length = calloc((size_t)c->n_seqs, sizeof *length);
    double bytes = 0;
    if (!length) return 1;
    bs_bench_lengths(c, length);
    for (int b = 0; b < c->n_seqs; b++) {
        int64_t quant_pages, f16_tokens;
        bs_bench_visible(c, format, length[b], &quant_pages, &f16_tokens);
        bytes += c->n_kv_heads * ((double)quant_pages * quant + (double)f16_tokens * f16_token);
    }
    free(length);
    return bytes;
}

/* ---- lists ---- */

static bs_status list_pages(bs_bench_cache *k)
{
    const bs_bench_case *c = k->item;
    const bs_kv_format *f = &k->shape.format;
    k->seqs = calloc((size_t)c->n_seqs, sizeof *k->seqs);
    int32_t *length = calloc((size_t)c->n_seqs, sizeof *length);
    if (!k->seqs || !length) {
        free(length);
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d sequences", c->n_seqs);
    }
    bs_bench_lengths(c, length);
    for (int b = 0; b < c->n_seqs; b++) {
        int64_t first, last, n = (length[b] + PAGE - 1) / PAGE;
        quantized_range(f, c->n_query, length[b], &first, &last);
        if (first > n) first = last = n;
        k->seqs[b] = (bs_bench_seq){length[b], k->n_pages, (int32_t)first, (int32_t)(last - first),
                                    (int32_t)(n - last)};
        k->n_pages += (int)n;
    }
    free(length);
    k->pages = calloc((size_t)k->n_pages, sizeof *k->pages);
    if (!k->pages) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d pages", k->n_pages);
    for (int b = 0; b < c->n_seqs; b++) {
        const bs_bench_seq *s = &k->seqs[b];
        for (int32_t p = 0; p < s->n_sink + s->n_quant + s->n_f16; p++) {
            bool quantized = p >= s->n_sink && p < s->n_sink + s->n_quant;
            k->pages[s->page_start + p] = (bs_bench_page){.index = p, .quantized = quantized};
        }
    }
    return BS_STATUS_OK;
}

void bs_bench_shuffle(uint32_t *order, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)(bs_bench_random(&seed) % (i + 1));
        order[i] = order[j];
        order[j] = i;
    }
}

/* Gives each page a slot of its own pool and a source; f16 slots begin behind the sources. */
static bs_status deal_slots(bs_bench_cache *k, uint32_t n_quant, uint32_t n_f16)
{
    uint64_t seed = 2;
    uint32_t next[2] = {0, 0},
             *order[2] = {malloc((n_f16 + 1) * sizeof **order), malloc((n_quant + 1) * sizeof **order)};
    if (order[0] && order[1]) {
        bs_bench_shuffle(order[0], n_f16, 3);
        bs_bench_shuffle(order[1], n_quant, 4);
        for (int e = 0; e < k->n_pages; e++) {
            bs_bench_page *p = &k->pages[e];
            p->slot = order[p->quantized][next[p->quantized]++] + (p->quantized ? 0 : (uint32_t)k->n_sources);
            p->source = (uint16_t)(bs_bench_random(&seed) % (uint64_t)k->n_sources);
        }
    }
    bool good = order[0] && order[1];
    free(order[0]);
    free(order[1]);
    return good ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "bench: no memory for an order of slots");
}

/* ---- contents ---- */

/* Sum of four uniform 16-bit numbers: near enough to normal, variance 1. */
static float noise(uint64_t *seed)
{
    uint64_t x = bs_bench_random(seed);
    int32_t sum = (int32_t)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48)) - 2 * 0xffff;
    return (float)sum * (1.7320508f / 65536);
}

static size_t head_page(const bs_kv_shape *shape)
{
    return 2 * (size_t)PAGE * (size_t)shape->head_dim;
}

static bs_f16 *make_bank(const bs_kv_shape *shape)
{
    const int d = shape->head_dim;
    uint64_t seed = 1;
    float offset[2][BS_MAX_HEAD_DIM], size[BS_MAX_HEAD_DIM];
    bs_f16 *bank = malloc(N_KINDS * N_VARIANTS * head_page(shape) * sizeof *bank);
    for (int kind = 0; bank && kind < N_KINDS; kind++) {
        for (int i = 0; i < d; i++) {
            offset[0][i] = 0.5f * noise(&seed);
            offset[1][i] = 0.3f * noise(&seed);
            size[i] = i % (d / 4) == 5 * kind % (d / 4) ? 4 : 1;
        }
        for (int variant = 0; variant < N_VARIANTS; variant++) {
            bs_f16 *page = bank + (size_t)(kind * N_VARIANTS + variant) * head_page(shape);
            for (int i = 0; i < PAGE * d; i++) {
                page[i] = bs_f32_to_f16(size[i % d] * (noise(&seed) + offset[0][i % d]));
                page[PAGE * d + i] = bs_f32_to_f16(noise(&seed) + offset[1][i % d]);
            }
        }
    }
    return bank;
}

static size_t bank_place(const bs_kv_shape *shape, int source, int layer, int kv_head)
{
    int kind = (kv_head + layer) % N_KINDS,
        variant = (source + 5 * layer + 11 * (kv_head / N_KINDS)) % N_VARIANTS;
    return (size_t)(kind * N_VARIANTS + variant) * head_page(shape);
}

const bs_f16 *bs_bench_source(const bs_bench_cache *cache, int source, int layer, int kv_head)
{
    return cache->bank + bank_place(&cache->shape, source, layer, kv_head);
}

/* staging: the bank where unpack reads it. */
static bs_status unpack_sources(const bs_bench_cache *k, bs_f16 *staging)
{
    const int n_heads = k->shape.n_kv_heads, n_layers = k->shape.n_layers;
    bs_kv_page_ref refs[UNPACK_BATCH];
    bs_pack_args args = {.pools = &k->pools, .pages = refs};
    for (int i = 0; i < k->n_sources * n_layers * n_heads; i++) {
        int source = i / (n_layers * n_heads), layer = i / n_heads % n_layers, head = i % n_heads;
        bs_f16 *page = staging + bank_place(&k->shape, source, layer, head);
        refs[args.n++] = (bs_kv_page_ref){.slot = (uint32_t)source,
                                          .layer = layer,
                                          .kv_head = head,
                                          .k = page,
                                          .v = page + PAGE * k->shape.head_dim};
        if (args.n < UNPACK_BATCH) continue;
        BS_TRY(bs_op_unpack(k->bench->stream, &args));
        BS_TRY(bs_stream_sync(k->bench->stream)); /* refs are used again */
        args.n = 0;
    }
    if (args.n > 0) BS_TRY(bs_op_unpack(k->bench->stream, &args));
    return bs_stream_sync(k->bench->stream);
}

bs_status bs_bench_fill_sources(bs_bench_cache *k, int n_sources, uint32_t n_more)
{
    size_t f16_bytes, quant_bytes, bank_bytes = N_KINDS * N_VARIANTS * head_page(&k->shape) * sizeof *k->bank;
    bs_buffer *staging = NULL;
    bs_status status;
    k->n_sources = n_sources;
    BS_TRY(bs_kv_slot_bytes(k->bench->device, &k->shape, &f16_bytes, &quant_bytes));
    k->pools = (bs_kv_pools){.shape = &k->shape, .n_f16_slots = (uint32_t)n_sources + n_more};
    BS_TRY(bs_buffer_alloc(k->bench->device, k->pools.n_f16_slots * f16_bytes, "f16 pages", &k->f16));
    k->pools.f16_pool = bs_buffer_at(k->f16, 0);
    if (!(k->bank = make_bank(&k->shape)))
        return bs_fail(BS_STATUS_NOMEM, "bench: %zu bytes of pages", bank_bytes);
    BS_TRY(bs_buffer_alloc(k->bench->device, bank_bytes, "pages", &staging));
    BS_TRY_GOTO(bs_copy_to_device(k->bench->stream, bs_buffer_at(staging, 0), k->bank, bank_bytes),
                err_staging);
    status = unpack_sources(k, bs_buffer_at(staging, 0));
err_staging:
    bs_buffer_free(staging);
    return status;
}

static bs_status copy_f16_pages(const bs_bench_cache *k, size_t slot_bytes)
{
    char *pool = k->pools.f16_pool;
    for (int e = 0; e < k->n_pages; e++) {
        const bs_bench_page *p = &k->pages[e];
        if (p->quantized) continue;
        BS_TRY(bs_copy_on_device(k->bench->stream, pool + p->slot * slot_bytes, pool + p->source * slot_bytes,
                                 slot_bytes));
    }
    return BS_STATUS_OK;
}

/* Uses the room of the tables, which come later, for the two arrays of slots. */
static bs_status quantize_pages(const bs_bench_cache *k, uint32_t n_quant, uint32_t *slots, uint32_t *at)
{
    uint32_t n = 0;
    for (int e = 0; e < k->n_pages; e++) {
        if (!k->pages[e].quantized) continue;
        slots[n] = k->pages[e].source;
        slots[n_quant + n++] = k->pages[e].slot;
    }
    BS_TRY(bs_copy_to_device(k->bench->stream, at, slots, 2 * n_quant * sizeof *slots));
    BS_TRY(bs_op_quantize(k->bench->stream, &(bs_quantize_args){&k->pools, (int)n_quant, at, at + n_quant}));
    return bs_stream_check(k->bench->stream);
}

/* The host's copy of all tables, in the order in which place_tables takes them apart. */
static void write_tables(const bs_bench_cache *k, int32_t *at)
{
    const int n = k->item->n_seqs, t = k->item->n_query;
    for (int b = 0; b <= n; b++) *at++ = b * t;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].length - t;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].page_start;
    *at++ = k->n_pages;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].n_sink;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].n_quant;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].n_f16;
    for (int b = 0; b < n; b++) *at++ = k->seqs[b].length;
    for (int e = 0; e < k->n_pages; e++) *at++ = (int32_t)k->pages[e].slot;
    for (int e = 0; e < k->n_pages; e++) *at++ = k->pages[e].index;
}

static bs_bench_tables place_tables(const bs_bench_cache *k, const int32_t *at)
{
    const int n = k->item->n_seqs;
    bs_bench_tables t = {.q_start = at};
    t.q_pos0 = t.q_start + n + 1;
    t.page_start = t.q_pos0 + n;
    t.n_sink = t.page_start + n + 1;
    t.n_quant = t.n_sink + n;
    t.n_f16 = t.n_quant + n;
    t.n_tokens = t.n_f16 + n;
    t.page_slot = (const uint32_t *)(t.n_tokens + n);
    t.page_index = (const int32_t *)t.page_slot + k->n_pages;
    return t;
}

static bs_status fill_pages(bs_bench_cache *k, uint32_t n_quant, size_t f16_bytes, size_t quant_bytes)
{
    size_t n_words = 7 * (size_t)k->item->n_seqs + 2 + 2 * (size_t)k->n_pages;
    BS_TRY(bs_buffer_alloc(k->bench->device, n_words * sizeof(int32_t), "page lists", &k->tables_at));
    int32_t *words = malloc(n_words * sizeof *words), *at = bs_buffer_at(k->tables_at, 0);
    if (!words) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for page lists");
    bs_status status = copy_f16_pages(k, f16_bytes);
    if (status == BS_STATUS_OK && n_quant > 0) {
        BS_TRY_GOTO(bs_buffer_alloc(k->bench->device, n_quant * quant_bytes, "quantized pages", &k->quant),
                    err_words);
        k->pools.quant_pool = bs_buffer_at(k->quant, 0);
        k->pools.n_quant_slots = n_quant;
        status = quantize_pages(k, n_quant, (uint32_t *)words, (uint32_t *)at);
    }
    if (status != BS_STATUS_OK) goto err_words;
    write_tables(k, words);
    k->tables = place_tables(k, at);
    BS_TRY_GOTO(bs_copy_to_device(k->bench->stream, at, words, n_words * sizeof *words), err_words);
    status = bs_stream_sync(k->bench->stream);
err_words:
    free(words);
    return status;
}

/* Layers enough for a rotation, of a case whose layer has so many bytes. */
static int layers_for(const bs_bench *bench, const bs_bench_case *c, double bytes)
{
    /* A chunk is bound by arithmetic, and its workspace alone is more than a cache holds. */
    if (bs_bench_is_chunk(bench, c)) return CHUNK_LAYERS;
    const double n = ceil((bench->gpu ? BS_BENCH_ROTATE_GPU : BS_BENCH_ROTATE_CPU) / bytes);
    const int most = bench->gpu ? BS_BENCH_MAX_LAYERS : BS_BENCH_MAX_LAYERS / 4;
    if (n <= most) return (int)n;
    char shape[BS_BENCH_SHAPE_NAME], size[32];
    bs_bench_shape_name(c, shape);
    bs_format_bytes((uint64_t)(most * bytes), size, sizeof size);
    bs_log_info("bench: %s: calls go round over %s only, which caches may hold", shape, size);
    return most;
}

bs_status bs_bench_cache_open(const bs_bench *bench, const bs_bench_case *item, bs_bench_cache *k)
{
    size_t f16_bytes, quant_bytes;
    uint32_t n_quant = 0;
    *k = (bs_bench_cache){.bench = bench, .item = item};
    k->shape = (bs_kv_shape){.n_kv_heads = item->n_kv_heads, .head_dim = item->head_dim};
    BS_TRY(bs_kv_format_parse(item->kv, &k->shape.format));
    k->shape.n_layers = layers_for(bench, item, bs_bench_bytes(item, &k->shape.format));
    BS_TRY(bs_kv_slot_bytes(bench->device, &k->shape, &f16_bytes, &quant_bytes));
    BS_TRY(list_pages(k));
    for (int e = 0; e < k->n_pages; e++) n_quant += k->pages[e].quantized;
    double most = (bench->gpu ? source_bytes_gpu : source_bytes_cpu) / (double)f16_bytes;
    int n_sources = most < 2 ? 2 : most < N_SOURCES ? (int)most : N_SOURCES;
    BS_TRY(bs_bench_fill_sources(k, n_sources, (uint32_t)k->n_pages - n_quant));
    BS_TRY(deal_slots(k, n_quant, (uint32_t)k->n_pages - n_quant));
    return fill_pages(k, n_quant, f16_bytes, quant_bytes);
}

void bs_bench_cache_close(bs_bench_cache *k)
{
    bs_buffer_free(k->f16);
    bs_buffer_free(k->quant);
    bs_buffer_free(k->tables_at);
    free(k->seqs);
    free(k->pages);
    free(k->bank);
}
