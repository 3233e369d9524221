/* attend.c: attention of a step's query tokens over this shard's pages: which pages, which rows, which
 * thread.
 *
 * A block is up to 128 rows (query tokens × the G query heads of one KV head) of one sequence that walk the
 * same pages, so a page is read once for all of them; a page's arithmetic is attend_simd.h's. With several
 * threads a block that costs more than a quarter of a thread's share (a long decode among short ones, or few
 * heads) has its pages cut into runs, whose states are merged by the one rule. The list of runs depends on
 * the tables and the number of threads only, and each run's result on nothing else; threads take runs as they
 * become free, the deepest blocks of a causal chunk first. So the bits are the same from run to run.
 *
 * Cost: reads each stored byte of the visible pages once a block; docs/perf/LOG.md has GB/s.
 */
#include "kernels/cpu/attend_tile.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pool.h"
#include "src/base/checked.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* ---- scratch ---- */

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

/* The state of one run of a block that was cut: O [128, D], then LSE [128]. */
static size_t state_floats(int dim)
{
    return BS_ATTEND_ROWS * ((size_t)dim + 1);
}

/* Pages entry0 … entry1 − 1 of what query tokens first … first + n − 1 of a sequence see, for one KV head. */
typedef struct run {
    int32_t seq, kv_head, first, n;
    int32_t entry0, entry1; /* of the block's span */
    int32_t n_runs;         /* of its block; 0 in all but the first of them */
    int32_t state;          /* where its state goes when the block was cut, else −1 */
} run;

enum { SHARES = 4 }; /* a run costs at most this part of a thread's even share */

/* A cut block has at most 2 · cost / quota runs, and the costs sum to SHARES · n_threads quotas. */
static size_t max_states(int n_threads)
{
    return n_threads > 1 ? 2 * SHARES * (size_t)n_threads : 0;
}

/* Query tokens of a block. */
static int block_tokens(int group)
{
    return BS_ATTEND_ROWS / group;
}

static size_t max_runs(int n_threads, int n_kv_heads, int group, int max_seqs, int max_tokens)
{
    size_t n_blocks = (size_t)(max_tokens / block_tokens(group) + max_seqs) * (size_t)n_kv_heads;
    return n_blocks + max_states(n_threads);
}

size_t bs_cpu_attend_workspace(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                               int max_tokens, int max_pages)
{
    const int group = n_heads / shape->n_kv_heads, n_threads = device->info.n_threads;
    if (group < 1 || group > BS_ATTEND_ROWS) return 0; /* refused by bs_cpu_attend */
    size_t floats = (size_t)n_threads * block_floats(shape->head_dim) +
                    max_states(n_threads) * state_floats(shape->head_dim);
    return 64 + floats * sizeof(float) +
           max_runs(n_threads, shape->n_kv_heads, group, max_seqs, max_tokens) * sizeof(run);
}

/* ---- which pages ---- */

typedef struct job {
    const bs_attend_args *args;
    bs_cpu_kv_layout layout;
    bs_attend_page_fn *fold_page;
    int group; /* G */
    int n_threads, n_runs, n_states;
    atomic_int n_taken;
    float *scratch, *states;
    run *runs;
} job;

/* The entries of a sequence's page list that a block sees: a stretch of each of its three ascending parts. */
typedef struct span {
    int first[3], n[3], total;
} span;

/* First entry from `first` on, before `end`, whose page number is at least `page`. */
static int lower_bound(const int32_t *index, int first, int end, int64_t page)
{
    while (first < end) {
        int middle = first + (end - first) / 2;
        if (index[middle] < page) first = middle + 1;
        else end = middle;
    }
    return first;
}

static span find_span(const bs_attend_args *a, int seq, int first, int n)
{
    span s = {.total = 0};
    const int64_t position = (int64_t)a->q_pos0[seq] + first;
    const int64_t lo = a->window > 0 ? bs_max_i64(0, position - a->window + 1) : 0;
    const int64_t hi = bs_min_i64(position + n - 1, (int64_t)a->n_tokens[seq] - 1);
    if (a->q_pos0[seq] < 0 || hi < lo) return s;
    const int parts[3] = {a->n_sink[seq], a->n_quant[seq], a->n_f16[seq]};
    for (int i = 0, at = a->page_start[seq]; i < 3; at += parts[i++]) {
        s.first[i] = lower_bound(a->page_index, at, at + parts[i], lo / BS_PAGE_TOKENS);
        s.n[i] = lower_bound(a->page_index, s.first[i], at + parts[i], hi / BS_PAGE_TOKENS + 1) - s.first[i];
        s.total += s.n[i];
    }
    return s;
}

/* Entry `entry` of a span: its place in the list; the page is filled but for what is visible. */
static int find_page(const job *j, const run *u, const span *s, int entry, bs_attend_page *page)
{
    const bs_attend_args *a = j->args;
    int part = 0;
    for (; entry >= s->n[part]; part++) entry -= s->n[part];
    const int at = s->first[part] + entry;
    const uint32_t slot = a->page_slot[at];
    *page = (bs_attend_page){.layout = &j->layout};
    if (part == 1) {
        page->record = bs_cpu_quant_record(&j->layout, a->pools->quant_pool, slot, a->layer, u->kv_head);
    } else {
        page->k = bs_cpu_f16_page(&j->layout, a->pools->f16_pool, slot, a->layer, u->kv_head, false);
        page->v = bs_cpu_f16_page(&j->layout, a->pools->f16_pool, slot, a->layer, u->kv_head, true);
    }
    return at;
}

/* Bytes from a page to the next of the walk, when they are of one kind. */
static ptrdiff_t distance(const bs_attend_page *from, const bs_attend_page *to)
{
    if (from->record && to->record) return to->record - from->record;
    return from->k && to->k ? (const char *)to->k - (const char *)from->k : 0;
}

/* What each row sees of the page that begins at position `base`; false when none sees any. Rows ascend in
 * position. */
static bool set_visible(const job *j, const run *u, bs_attend_block *b, int64_t base, bs_attend_page *page)
{
    const bs_attend_args *a = j->args;
    const int64_t far = 2 * BS_PAGE_TOKENS; /* bounds that an int holds, and that mean the same */
    for (int r = 0; r < b->n_rows; r++) {
        int64_t position = (int64_t)a->q_pos0[u->seq] + u->first + r / j->group;
        int64_t hi = bs_min_i64(position + 1, a->n_tokens[u->seq]) - base;
        int64_t lo = a->window > 0 ? position - a->window + 1 - base : 0;
        b->lo[r] = (int32_t)bs_max_i64(0, bs_min_i64(lo, far));
        b->hi[r] = (int32_t)bs_max_i64(-far, bs_min_i64(hi, BS_PAGE_TOKENS));
    }
    page->first = b->lo[0];
    page->end = b->hi[b->n_rows - 1];
    page->full = b->lo[b->n_rows - 1] == 0 && b->hi[0] == BS_PAGE_TOKENS;
    return page->first < page->end;
}

static void walk_pages(const job *j, const run *u, bs_attend_block *b)
{
    if (u->entry0 == u->entry1) return;
    const span s = find_span(j->args, u->seq, u->first, u->n);
    bs_attend_page page, next;
    int at, next_at = find_page(j, u, &s, u->entry0, &next);
    for (int entry = u->entry0; entry < u->entry1; entry++) {
        page = next;
        at = next_at;
        if (entry + 1 < u->entry1) {
            next_at = find_page(j, u, &s, entry + 1, &next);
            page.next = distance(&page, &next);
        }
        int64_t base = (int64_t)j->args->page_index[at] * BS_PAGE_TOKENS;
        if (set_visible(j, u, b, base, &page)) j->fold_page(&page, b);
    }
}

/* ---- which rows ---- */

/* Row i · G + g of a block is query token first + i, head kv_head · G + g; its place among all rows. */
static size_t row_of(const job *j, const run *u, int row)
{
    int token = j->args->q_start[u->seq] + u->first + row / j->group;
    return (size_t)token * (size_t)j->args->n_heads + (size_t)(u->kv_head * j->group + row % j->group);
}

static void load_rows(const job *j, const run *u, bs_attend_block *b)
{
    const bs_attend_args *a = j->args;
    int dim = j->layout.head_dim;
    b->n_rows = u->n * j->group;
    for (int r = 0; r < b->n_rows; r++) {
        int token = a->q_start[u->seq] + u->first + r / j->group, head = u->kv_head * j->group + r % j->group;
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

/* l is 0 only where nothing was seen: the best token's p is 1. A NaN goes through. */
static void finish_row(const bs_attend_block *b, int r, int dim, float *o, float *lse)
{
    const float inverse = b->l[r] == 0 ? 0 : 1 / b->l[r];
    for (int d = 0; d < dim; d++) o[d] = b->o[r * dim + d] * inverse;
    *lse = b->l[r] == 0 ? -INFINITY : b->m[r] + logf(b->l[r]);
}

static void do_run(const job *j, const run *u, bs_attend_block *b)
{
    const int dim = j->layout.head_dim;
    load_rows(j, u, b);
    walk_pages(j, u, b);
    for (int r = 0; r < b->n_rows; r++) {
        float *state = j->states + (size_t)(u->state < 0 ? 0 : u->state) * state_floats(dim);
        size_t row = row_of(j, u, r);
        if (u->state < 0) finish_row(b, r, dim, j->args->o + row * (size_t)dim, j->args->lse + row);
        else finish_row(b, r, dim, state + r * dim, state + BS_ATTEND_ROWS * dim + r);
    }
}

/* ---- which thread ---- */

static void work(void *context, int part)
{
    job *j = context;
    const int dim = j->layout.head_dim;
    bs_attend_block b = place_block(j->scratch + (size_t)part * block_floats(dim), dim);
    for (int i; (i = atomic_fetch_add(&j->n_taken, 1)) < j->n_runs;)
        do_run(j, &j->runs[j->n_runs - 1 - i], &b);
}

/* Time of a block: rows of arithmetic and about eight rows' worth for reading the page. */
static int64_t cost_of(const job *j, const span *s, int n)
{
    return (int64_t)s->total * (n * j->group + 8);
}

static int tokens_of(const bs_attend_args *a, int seq)
{
    return a->q_start[seq + 1] - a->q_start[seq];
}

static void add_block(job *j, int seq, int first, int n, int64_t quota)
{
    const span s = find_span(j->args, seq, first, n);
    int64_t n_runs = j->n_threads > 1 ? (cost_of(j, &s, n) + quota - 1) / quota : 1;
    n_runs = bs_max_i64(1, bs_min_i64(n_runs, s.total / 2));
    for (int head = 0; head < j->layout.n_kv_heads; head++)
        for (int i = 0; i < n_runs; i++)
            j->runs[j->n_runs++] = (run){.seq = seq,
                                         .kv_head = head,
                                         .first = first,
                                         .n = n,
                                         .entry0 = (int32_t)(s.total * (int64_t)i / n_runs),
                                         .entry1 = (int32_t)(s.total * (int64_t)(i + 1) / n_runs),
                                         .n_runs = i == 0 ? (int32_t)n_runs : 0,
                                         .state = n_runs > 1 ? j->n_states++ : -1};
}

static void list_runs(job *j)
{
    const bs_attend_args *a = j->args;
    const int step = block_tokens(j->group);
    int64_t total = 0;
    for (int seq = 0; seq < a->max_seqs && j->n_threads > 1; seq++)
        for (int first = 0, T = tokens_of(a, seq), n; first < T; first += n) {
            n = T - first < step ? T - first : step;
            const span s = find_span(a, seq, first, n);
            total += cost_of(j, &s, n) * j->layout.n_kv_heads;
        }
    const int64_t quota = total / (SHARES * j->n_threads) + 1;
    for (int seq = 0; seq < a->max_seqs; seq++)
        for (int first = 0, T = tokens_of(a, seq); first < T; first += step)
            add_block(j, seq, first, T - first < step ? T - first : step, quota);
}

/* The one rule over a block's runs, a query token (its G rows are neighbours in states and output) at a time.
 */
static bs_status merge_block(bs_stream *stream, const job *j, const run *u)
{
    const int dim = j->layout.head_dim;
    const float *states = j->states + (size_t)u->state * state_floats(dim);
    for (int row = 0; row < u->n * j->group; row += j->group) {
        size_t to = row_of(j, u, row);
        bs_merge_args merge = {.n_parts = u->n_runs,
                               .n_rows = j->group,
                               .dim = dim,
                               .o = states + row * dim,
                               .lse = states + BS_ATTEND_ROWS * dim + row,
                               .o_stride = (int64_t)state_floats(dim),
                               .lse_stride = (int64_t)state_floats(dim),
                               .o_out = j->args->o + to * (size_t)dim,
                               .lse_out = j->args->lse + to};
        BS_TRY(bs_cpu_merge(stream, &merge));
    }
    return BS_STATUS_OK;
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
    job j = {.args = a, .layout = bs_cpu_kv_layout_of(a->pools->shape), .fold_page = page_fn_of(stream)};
    j.group = a->n_heads / j.layout.n_kv_heads;
    if (j.group > BS_ATTEND_ROWS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "attend: %d query heads a KV head, at most %d", j.group,
                       BS_ATTEND_ROWS);
    j.n_threads = bs_pool_threads(pool);
    j.scratch = (float *)(((uintptr_t)a->workspace + 63) & ~(uintptr_t)63);
    j.states = j.scratch + (size_t)j.n_threads * block_floats(j.layout.head_dim);
    j.runs = (run *)(j.states + max_states(j.n_threads) * state_floats(j.layout.head_dim));
    list_runs(&j);
    bs_pool_run(pool, j.n_threads < j.n_runs ? j.n_threads : j.n_runs, work, &j);
    for (int i = 0; i < j.n_runs && j.n_states > 0; i++)
        if (j.runs[i].n_runs > 1) BS_TRY(merge_block(stream, &j, &j.runs[i]));
    return BS_STATUS_OK;
}
