/* attend.c: attention of a step's query tokens over this shard's pages: which pages, which rows, which
 * thread.
 *
 * The unit of work is a block: up to 128 rows (query tokens × the G query heads of one KV head) of one
 * sequence that walk the same pages, so a page is read once for all of them; a page's arithmetic is
 * attend_simd.h's. Blocks are dealt to the threads in turn. When there are fewer blocks than threads (a
 * decode step of one sequence with few KV heads) each block's pages are cut into as many runs as give every
 * thread one, and the runs' states are merged by the one rule. The cut depends on the numbers of blocks and
 * threads only, so the bits are the same from run to run.
 *
 * Cost: reads each stored byte of the visible pages once a block; docs/perf/LOG.md has GB/s.
 */
#include "kernels/cpu/attend_tile.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pool.h"
#include "src/base/checked.h"

#include <math.h>
#include <string.h>

/* ---- scratch ----------------------------------------------------------------------------------------------
 */

enum { MAX_PASS_ROWS = 8, PARAMETERS = BS_ATTEND_MAX_GROUPS * BS_PAGE_TOKENS };

static size_t round16(size_t floats)
{
    return (floats + 15) & ~(size_t)15;
}

/* Floats of one thread's block, in the order of place_block. */
static size_t block_floats(int dim)
{
    size_t rows = BS_ATTEND_ROWS, d = (size_t)dim;
    return 2 * rows * d + 5 * rows + BS_ATTEND_TILE_ROWS * BS_PAGE_TOKENS +
           (size_t)BS_ATTEND_MAX_GROUPS * MAX_PASS_ROWS * BS_PAGE_TOKENS +
           round16(BS_ATTEND_MAX_GROUPS * MAX_PASS_ROWS) + MAX_PASS_ROWS * 64 + 2 * PARAMETERS +
           2 * d * BS_PAGE_TOKENS;
}

static float *take(float **at, size_t floats)
{
    float *taken = *at;
    *at += floats;
    return taken;
}

static bs_attend_block place_block(float *at, int dim)
{
    size_t rows = BS_ATTEND_ROWS, d = (size_t)dim;
    return (bs_attend_block){
        .q = take(&at, rows * d),
        .o = take(&at, rows * d),
        .m = take(&at, rows),
        .l = take(&at, rows),
        .lo = (int32_t *)take(&at, rows),
        .hi = (int32_t *)take(&at, rows),
        .alpha = take(&at, rows),
        .s = take(&at, BS_ATTEND_TILE_ROWS * BS_PAGE_TOKENS),
        .factor = take(&at, (size_t)BS_ATTEND_MAX_GROUPS * MAX_PASS_ROWS * BS_PAGE_TOKENS),
        .shift = take(&at, round16(BS_ATTEND_MAX_GROUPS * MAX_PASS_ROWS)),
        .sum = take(&at, MAX_PASS_ROWS * 64),
        .scale = take(&at, PARAMETERS),
        .zero = take(&at, PARAMETERS),
        .k_tile = take(&at, d * BS_PAGE_TOKENS),
        .v_tile = take(&at, d * BS_PAGE_TOKENS),
    };
}

/* A run's state: O [128, D], then LSE [128]. Only blocks fewer than threads are cut, into at most twice as
 * many runs. */
static size_t run_floats(int dim)
{
    return BS_ATTEND_ROWS * ((size_t)dim + 1);
}

static size_t n_run_states(int n_threads)
{
    return n_threads > 1 ? 2 * (size_t)n_threads : 0;
}

size_t bs_cpu_attend_workspace(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                               int max_tokens, int max_pages)
{
    size_t n = (size_t)device->info.n_threads;
    size_t floats = n * block_floats(shape->head_dim) +
                    n_run_states(device->info.n_threads) * run_floats(shape->head_dim);
    return floats * sizeof(float) + 64;
}

/* ---- a job ------------------------------------------------------------------------------------------------
 */

typedef struct job {
    const bs_attend_args *args;
    bs_cpu_kv_layout layout;
    bs_attend_page_fn *fold_page;
    int group;        /* G */
    int block_tokens; /* query tokens of a block at most */
    int n_blocks, n_runs, n_threads;
    float *scratch, *states;
} job;

/* The u-th block: a sequence, a KV head, query tokens first … first + n − 1 of the sequence. */
typedef struct block_id {
    int seq, kv_head, first, n;
} block_id;

static int tokens_of(const bs_attend_args *a, int seq)
{
    return a->q_pos0[seq] < 0 ? 0 : a->q_start[seq + 1] - a->q_start[seq];
}

static int blocks_of(const job *j, int seq)
{
    int per_head = (tokens_of(j->args, seq) + j->block_tokens - 1) / j->block_tokens;
    return per_head * j->layout.n_kv_heads;
}

static block_id find_block(const job *j, int u)
{
    int seq = 0;
    for (int n; u >= (n = blocks_of(j, seq)); seq++) u -= n;
    int first = u / j->layout.n_kv_heads * j->block_tokens, left = tokens_of(j->args, seq) - first;
    return (block_id){seq, u % j->layout.n_kv_heads, first, left < j->block_tokens ? left : j->block_tokens};
}

/* Row i · G + g of a block is query token first + i, head kv_head · G + g; its place among all rows. */
static size_t row_of(const job *j, const block_id *id, int row)
{
    int token = j->args->q_start[id->seq] + id->first + row / j->group;
    return (size_t)token * (size_t)j->args->n_heads + (size_t)(id->kv_head * j->group + row % j->group);
}

static void load_rows(const job *j, const block_id *id, bs_attend_block *b)
{
    const bs_attend_args *a = j->args;
    int dim = j->layout.head_dim;
    b->n_rows = id->n * j->group;
    for (int r = 0; r < b->n_rows; r++) {
        int token = a->q_start[id->seq] + id->first + r / j->group,
            head = id->kv_head * j->group + r % j->group;
        const float *q = (const float *)a->q + token * a->q_ld + head * dim;
        for (int d = 0; d < dim; d++) b->q[r * dim + d] = q[d] * a->scale;
        b->m[r] = -INFINITY;
        b->l[r] = 0;
    }
    memset(b->o, 0, (size_t)b->n_rows * (size_t)dim * sizeof *b->o);
    /* Padding rows are computed and thrown away. */
    int pad = BS_ATTEND_ROWS - b->n_rows < MAX_PASS_ROWS ? BS_ATTEND_ROWS - b->n_rows : MAX_PASS_ROWS;
    memset(b->q + b->n_rows * dim, 0, (size_t)(pad * dim) * sizeof *b->q);
}

/* What each row sees of the page that begins at position `base`; false when none sees any. Rows ascend in
 * position. */
static bool set_visible(const job *j, const block_id *id, bs_attend_block *b, int64_t base,
                        bs_attend_page *page)
{
    const bs_attend_args *a = j->args;
    const int64_t far = 2 * BS_PAGE_TOKENS; /* bounds that an int holds, and that mean the same */
    for (int r = 0; r < b->n_rows; r++) {
        int64_t position = (int64_t)a->q_pos0[id->seq] + id->first + r / j->group;
        int64_t hi = bs_min_i64(position + 1, a->n_tokens[id->seq]) - base;
        int64_t lo = a->window > 0 ? position - a->window + 1 - base : 0;
        b->lo[r] = (int32_t)bs_max_i64(0, bs_min_i64(lo, far));
        b->hi[r] = (int32_t)bs_max_i64(-far, bs_min_i64(hi, BS_PAGE_TOKENS));
    }
    page->first = b->lo[0];
    page->end = b->hi[b->n_rows - 1];
    page->full = b->lo[b->n_rows - 1] == 0 && b->hi[0] == BS_PAGE_TOKENS;
    return page->first < page->end;
}

static void find_page(const job *j, const block_id *id, int entry, bs_attend_page *page)
{
    const bs_attend_args *a = j->args;
    int at = a->page_start[id->seq] + entry;
    bool quantized = entry >= a->n_sink[id->seq] && entry < a->n_sink[id->seq] + a->n_quant[id->seq];
    page->layout = &j->layout;
    page->record = NULL;
    page->k = page->v = NULL;
    if (quantized) {
        page->record = bs_cpu_quant_record(&j->layout, a->pools->quant_pool, a->page_slot[at], a->layer,
                                           id->kv_head);
    } else {
        page->k = bs_cpu_f16_page(&j->layout, a->pools->f16_pool, a->page_slot[at], a->layer, id->kv_head,
                                  false);
        page->v = bs_cpu_f16_page(&j->layout, a->pools->f16_pool, a->page_slot[at], a->layer, id->kv_head,
                                  true);
    }
}

/* Bytes from a page to the next of the walk, when they are of one kind. */
static ptrdiff_t distance(const bs_attend_page *from, const bs_attend_page *to)
{
    if (from->record && to->record) return to->record - from->record;
    return from->k && to->k ? (const char *)to->k - (const char *)from->k : 0;
}

static void walk_pages(const job *j, const block_id *id, int first, int end, bs_attend_block *b)
{
    const bs_attend_args *a = j->args;
    bs_attend_page page, next;
    if (first < end) find_page(j, id, first, &next);
    for (int entry = first; entry < end; entry++) {
        page = next;
        page.next = 0;
        if (entry + 1 < end) {
            find_page(j, id, entry + 1, &next);
            page.next = distance(&page, &next);
        }
        int64_t base = (int64_t)a->page_index[a->page_start[id->seq] + entry] * BS_PAGE_TOKENS;
        if (set_visible(j, id, b, base, &page)) j->fold_page(&page, b);
    }
}

/* Normalises the block's state into o and lse, row r at o + o_at[r]·D. */
static void finish_row(const bs_attend_block *b, int r, int dim, float *o, float *lse)
{
    float inverse = b->l[r] > 0 ? 1 / b->l[r] : 0;
    for (int d = 0; d < dim; d++) o[d] = b->l[r] > 0 ? b->o[r * dim + d] * inverse : 0;
    *lse = b->l[r] > 0 ? b->m[r] + logf(b->l[r]) : -INFINITY;
}

static void run_unit(const job *j, int unit, bs_attend_block *b)
{
    const bs_attend_args *a = j->args;
    block_id id = find_block(j, unit / j->n_runs);
    int run = unit % j->n_runs, dim = j->layout.head_dim;
    int64_t n_pages = (int64_t)a->n_sink[id.seq] + a->n_quant[id.seq] + a->n_f16[id.seq];
    load_rows(j, &id, b);
    walk_pages(j, &id, (int)(n_pages * run / j->n_runs), (int)(n_pages * (run + 1) / j->n_runs), b);
    float *state = j->states + (size_t)unit * run_floats(dim);
    for (int r = 0; r < b->n_rows; r++) {
        size_t row = row_of(j, &id, r);
        if (j->n_runs == 1) finish_row(b, r, dim, a->o + row * (size_t)dim, a->lse + row);
        else finish_row(b, r, dim, state + r * dim, state + BS_ATTEND_ROWS * dim + r);
    }
}

static void run_thread(void *context, int part)
{
    const job *j = context;
    bs_attend_block b = place_block(j->scratch + (size_t)part * block_floats(j->layout.head_dim),
                                    j->layout.head_dim);
    for (int unit = part; unit < j->n_blocks * j->n_runs; unit += j->n_threads) run_unit(j, unit, &b);
}

/* The one rule over a block's runs, row by row. */
static void merge_runs(const job *j, int block)
{
    block_id id = find_block(j, block);
    int dim = j->layout.head_dim;
    for (int r = 0; r < id.n * j->group; r++) {
        const float *first = j->states + (size_t)(block * j->n_runs) * run_floats(dim);
        size_t row = row_of(j, &id, r), stride = run_floats(dim);
        float *o = j->args->o + row * (size_t)dim, max = -INFINITY, sum = 0;
        for (int run = 0; run < j->n_runs; run++)
            max = fmaxf(max, first[(size_t)run * stride + (size_t)(BS_ATTEND_ROWS * dim + r)]);
        memset(o, 0, (size_t)dim * sizeof *o);
        for (int run = 0; run < j->n_runs && max > -INFINITY; run++) {
            const float *state = first + (size_t)run * stride;
            float lse = state[BS_ATTEND_ROWS * dim + r], w = lse == -INFINITY ? 0 : expf(lse - max);
            if (w == 0) continue;
            sum += w;
            for (int d = 0; d < dim; d++) o[d] += w * state[r * dim + d];
        }
        for (int d = 0; d < dim && sum > 0; d++) o[d] /= sum;
        j->args->lse[row] = sum > 0 ? max + logf(sum) : -INFINITY;
    }
}

static bs_attend_page_fn *page_fn_of(const bs_stream *stream)
{
#if defined(__x86_64__)
    if (stream->device->info.isa == BS_ISA_AVX512) return bs_cpu_attend_page_avx512;
    if (stream->device->info.isa == BS_ISA_AVX2) return bs_cpu_attend_page_avx2;
#endif
    return bs_cpu_attend_page_scalar;
}

bs_status bs_cpu_attend(bs_stream *stream, const bs_attend_args *a)
{
    bs_pool *pool = bs_stream_pool(stream);
    job j = {.args = a,
             .layout = bs_cpu_kv_layout_of(a->pools->shape),
             .fold_page = page_fn_of(stream),
             .n_runs = 1};
    j.group = a->n_heads / j.layout.n_kv_heads;
    if (j.group > BS_ATTEND_ROWS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "attend: %d query heads a KV head, at most %d", j.group,
                       BS_ATTEND_ROWS);
    j.block_tokens = BS_ATTEND_ROWS / j.group;
    j.n_threads = bs_pool_threads(pool);
    for (int seq = 0; seq < a->max_seqs; seq++) j.n_blocks += blocks_of(&j, seq);
    if (j.n_blocks == 0) return BS_STATUS_OK;
    if (j.n_blocks < j.n_threads) j.n_runs = (j.n_threads + j.n_blocks - 1) / j.n_blocks;
    j.scratch = (float *)(((uintptr_t)a->workspace + 63) & ~(uintptr_t)63);
    j.states = j.scratch + (size_t)j.n_threads * block_floats(j.layout.head_dim);
    bs_pool_run(pool, j.n_threads, run_thread, &j);
    for (int block = 0; block < j.n_blocks && j.n_runs > 1; block++) merge_runs(&j, block);
    return BS_STATUS_OK;
}
