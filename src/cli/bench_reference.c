/* bench_reference.c: attention in fp64 over the dequantized pages, as docs/kv-format.md defines them.
 *
 * A page that is seen whole gives a partial state (m, l, O) that depends on its contents alone, so it is
 * computed once for each source, quantized and f16, and merged as often as the list names it: 8192 pages cost
 * as much as 32 do. Codes come from pack, in the canonical order; this file decodes them by its own reading
 * of the page. f16 pages are taken from the host's bank, not from the device. */
#include "config.h"

#include "src/cli/bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = BS_PAGE_TOKENS };

typedef struct state {
    bool known;
    double m, l, o[BS_MAX_HEAD_DIM]; /* l and o relative to exp(m); l = 0 is empty */
} state;

/* Canonical bytes of the quantized pages that stand for each source, one after another. */
typedef struct reference {
    const bs_bench_cache *cache;
    bs_bench_pair pair;
    const float *q;
    int kv_head;
    double scale;
    bs_kv_page_bytes bytes;
    uint8_t *packed;
    size_t packed_page;
    state *whole;  /* [2][n_sources] of pages seen whole: f16, quantized */
    double *k, *v; /* [128][D] of the page at hand */
} reference;

/* ---- decoding ---- */

static int code_at(const uint8_t *codes, int bits, int head_dim, int token, int channel)
{
    int bit = (token * head_dim + channel) * bits;
    return codes[bit / 8] >> bit % 8 & ((1 << bits) - 1);
}

/* s·(c + z/16) by the pair-th (s, z). */
static double value_of(const uint8_t *meta, int pair, int code)
{
    bs_f16 s;
    int16_t z;
    memcpy(&s, meta + 4 * pair, 2);
    memcpy(&z, meta + 4 * pair + 2, 2);
    return bs_f16_to_f32(s) * (code + z / 16.0);
}

static void decode_quantized(const reference *r, int source)
{
    const bs_kv_format *f = &r->cache->shape.format;
    const int d = r->cache->shape.head_dim, width = f->group < d ? f->group : d, per_token = d / width;
    const uint8_t *k = r->packed + (size_t)source * r->packed_page, *k_meta = k + r->bytes.k,
                  *v = k_meta + r->bytes.k_meta, *v_meta = v + r->bytes.v;
    const uint8_t *norms = k_meta + 4 * (f->k_per_channel ? PAGE / f->group * d : PAGE * per_token);
    for (int t = 0; t < PAGE; t++) {
        bs_f16 norm = 0;
        if (f->k_norm) memcpy(&norm, norms + 2 * t, 2);
        for (int c = 0; c < d; c++) {
            int pair = f->k_per_channel ? t / f->group * d + c : t * per_token + c / width;
            r->k[t * d + c] = value_of(k_meta, pair, code_at(k, f->k_bits, d, t, c)) *
                              (f->k_norm ? bs_f16_to_f32(norm) : 1);
            r->v[t * d + c] = value_of(v_meta, t * per_token + c / width, code_at(v, f->v_bits, d, t, c));
        }
    }
}

static void decode_f16(const reference *r, int source)
{
    const int n = PAGE * r->cache->shape.head_dim;
    const bs_f16 *page = bs_bench_source(r->cache, source, r->pair.layer, r->kv_head);
    for (int i = 0; i < n; i++) {
        r->k[i] = bs_f16_to_f32(page[i]);
        r->v[i] = bs_f16_to_f32(page[n + i]);
    }
}

/* ---- attention ---- */

/* Tokens first … last − 1 of the page at hand. */
static void attend_page(const reference *r, int first, int last, state *out)
{
    const int d = r->cache->shape.head_dim;
    double s[PAGE];
    *out = (state){.known = true, .m = -INFINITY};
    for (int t = first; t < last; t++) {
        double dot = 0;
        for (int c = 0; c < d; c++) dot += r->q[c] * r->k[t * d + c];
        s[t] = dot * r->scale;
        if (!(s[t] <= out->m)) out->m = s[t];
    }
    for (int t = first; t < last; t++) {
        double p = exp(s[t] - out->m);
        out->l += p;
        for (int c = 0; c < d; c++) out->o[c] += p * r->v[t * d + c];
    }
}

static void merge_into(state *sum, const state *part, int head_dim)
{
    if (part->l == 0) return;
    double m = sum->m > part->m ? sum->m : part->m, a = sum->l > 0 ? exp(sum->m - m) : 0,
           b = exp(part->m - m);
    sum->m = m;
    sum->l = sum->l * a + part->l * b;
    for (int c = 0; c < head_dim; c++) sum->o[c] = sum->o[c] * a + part->o[c] * b;
}

static void add_page(const reference *r, const bs_bench_page *page, int first, int last, state *sum)
{
    state *whole = &r->whole[page->quantized * r->cache->n_sources + page->source], part;
    const bool all = first == 0 && last == PAGE;
    if (!all || !whole->known) {
        if (page->quantized) decode_quantized(r, page->source);
        else decode_f16(r, page->source);
        attend_page(r, first, last, all ? whole : &part);
    }
    merge_into(sum, all ? whole : &part, r->cache->shape.head_dim);
}

/* The list names pages by slot; this packs, for every source, the first quantized page that has its contents.
 */
static bs_status pack_sources(reference *r)
{
    const bs_bench_cache *k = r->cache;
    bs_kv_page_ref *refs = calloc((size_t)k->n_sources, sizeof *refs);
    bs_buffer *staging = NULL;
    bs_status status;
    bs_pack_args args = {.pools = &k->pools, .quantized = true, .pages = refs};
    if (!refs) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d pages", k->n_sources);
    size_t bytes = (size_t)k->n_sources * r->packed_page;
    BS_TRY_GOTO(bs_buffer_alloc(k->bench->device, bytes, "canonical pages", &staging), err_refs);
    for (int source = 0; source < k->n_sources; source++) {
        int e = 0;
        while (e < k->n_pages && (!k->pages[e].quantized || k->pages[e].source != source)) e++;
        if (e == k->n_pages) continue;
        char *at = bs_buffer_at(staging, (size_t)source * r->packed_page);
        refs[args.n++] = (bs_kv_page_ref){.slot = k->pages[e].slot,
                                          .layer = r->pair.layer,
                                          .kv_head = r->kv_head,
                                          .k = at,
                                          .k_meta = at + r->bytes.k,
                                          .v = at + r->bytes.k + r->bytes.k_meta,
                                          .v_meta = at + r->bytes.k + r->bytes.k_meta + r->bytes.v};
    }
    BS_TRY_GOTO(bs_op_pack(k->bench->stream, &args), err_staging);
    BS_TRY_GOTO(bs_copy_to_host(k->bench->stream, r->packed, bs_buffer_at(staging, 0), bytes), err_staging);
    status = bs_stream_sync(k->bench->stream);
err_staging:
    bs_buffer_free(staging);
err_refs:
    free(refs);
    return status;
}

static void attend_sequence(const reference *r, double *o, double *lse)
{
    const bs_bench_case *c = r->cache->item;
    const bs_bench_seq *s = &r->cache->seqs[r->pair.seq];
    const int d = r->cache->shape.head_dim;
    const int64_t last = s->length - c->n_query + r->pair.token,
                  low = c->window && last - c->window + 1 > 0 ? last - c->window + 1 : 0;
    state sum = {.m = -INFINITY};
    for (int32_t e = 0; e < s->n_sink + s->n_quant + s->n_f16; e++) {
        const bs_bench_page *page = &r->cache->pages[s->page_start + e];
        int64_t from = low - (int64_t)page->index * PAGE, to = last + 1 - (int64_t)page->index * PAGE;
        if (from < 0) from = 0;
        if (to > PAGE) to = PAGE;
        if (from < to) add_page(r, page, (int)from, (int)to, &sum);
    }
    for (int i = 0; i < d; i++) o[i] = sum.l > 0 ? sum.o[i] / sum.l : 0;
    *lse = sum.l > 0 ? sum.m + log(sum.l) : -INFINITY;
}

bs_status bs_bench_reference(const bs_bench_cache *cache, bs_bench_pair pair, const float *q, double *o,
                             double *lse)
{
    const size_t page = PAGE * (size_t)cache->shape.head_dim;
    reference r = {.cache = cache, .pair = pair, .q = q, .scale = 1 / sqrt(cache->shape.head_dim)};
    r.kv_head = pair.head / (cache->item->n_heads / cache->item->n_kv_heads);
    if (cache->pools.n_quant_slots > 0) {
        r.bytes = bs_kv_canonical_bytes(&cache->shape.format, cache->shape.head_dim);
        r.packed_page = r.bytes.k + r.bytes.k_meta + r.bytes.v + r.bytes.v_meta;
    }
    r.packed = malloc((size_t)cache->n_sources * r.packed_page + 1);
    r.whole = calloc(2 * (size_t)cache->n_sources, sizeof *r.whole);
    r.k = malloc(2 * page * sizeof *r.k);
    r.v = r.k + page;
    bs_status status = BS_STATUS_OK;
    if (!r.packed || !r.whole || !r.k)
        status = bs_fail(BS_STATUS_NOMEM, "bench: no memory for the reference");
    else if (cache->pools.n_quant_slots > 0) status = pack_sources(&r);
    if (status == BS_STATUS_OK) attend_sequence(&r, o, lse);
    free(r.packed);
    free(r.whole);
    free(r.k);
    return status;
}
