/* attend_chunk.cu: attention of chunks of query tokens: what is launched, the plan, and the end of splits.
 *
 * The decode kernels read a page once for every 8 rows, and pay for its codes each time; from some rows on it is cheaper
 * to turn the pages into fp16 once and multiply at the tensor cores' full rate. A call is: the plan (what the
 * sequences see); for each slab of pages dequantize_tile.cu, then attend_chunk_kernel.cuh; and, where blocks of rows are
 * too few to fill the card and are cut into splits, a merge of these. Slabs bound the workspace, and the results themselves
 * carry a row's state from slab to slab. All sizes of launches come from the call's bounds, all lengths from
 * device memory.
 *
 * Rejected: dequantizing inside the kernel that multiplies (each of 64 blocks of rows would do it again: 6 instructions
 * an element against the 2 that 128 rows of softmax take); one kernel for all slabs (a barrier of the grid between). */
#include "kernels/cuda/attend_args.h"
#include "kernels/cuda/attend_chunk.cuh"

enum {
    SLAB_MAX_PAGES = 512, /* bounds how long a sum gets that tensor cores cut off (attend_chunk_kernel.cuh) */
    MAX_SPLITS = 16,
    MIN_SPLIT_PAGES = 2,
    PLAN_THREADS = CHUNK_MAX_SEQS,
    MERGE_THREADS = 256
};
static const size_t SLAB_BYTES = (size_t)256 << 20, STATE_BYTES = (size_t)64 << 20;

/* ---- the plan ---- */

/* First entry of [first, end) whose page number is at least `page`. Usually it is one of the ends. */
static __device__ int lower_bound(const int32_t *index, int first, int end, int page)
{
    if (page <= 0 || first >= end) return first;
    if (index[end - 1] < page) return end;
    while (first < end) {
        const int middle = (first + end) >> 1;
        if (index[middle] < page) first = middle + 1;
        else end = middle;
    }
    return first;
}

static __device__ chunk_span find_span(const chunk_params &p, int seq)
{
    chunk_span s = {};
    const int counts[3] = {p.n_sink[seq], p.n_quant[seq], p.n_f16[seq]};
    int at = p.page_start[seq];
    s.q_start = p.q_start[seq];
    s.n_query = max(0, p.q_start[seq + 1] - s.q_start);
    s.pos0 = p.q_pos0[seq];
    s.block = (s.n_query * p.group + CHUNK_ROWS - 1) / CHUNK_ROWS;
    if (s.pos0 >= 0 && s.n_query > 0) {
        s.seen = max(0, min(p.n_tokens[seq], s.pos0 + s.n_query));
        s.seen0 = p.window > 0 ? max(0, s.pos0 - p.window + 1) : 0;
    }
    for (int i = 0; i < 3; i++) {
        s.first[i] = lower_bound(p.page_index, at, at + counts[i], s.seen0 / BS_PAGE_TOKENS);
        const int end = lower_bound(p.page_index, s.first[i], at + counts[i],
                                    (s.seen + BS_PAGE_TOKENS - 1) / BS_PAGE_TOKENS);
        s.n[i] = end - s.first[i];
        s.unit += s.n[i];
        at += counts[i];
    }
    return s;
}

/* One CTA, a thread a sequence: spans, with running sums of units and blocks. */
static __global__ void __launch_bounds__(PLAN_THREADS) plan_kernel(const __grid_constant__ chunk_params p)
{
    __shared__ int2 sums[PLAN_THREADS];
    const int seq = (int)threadIdx.x;
    chunk_span s = {};
    if (seq < p.max_seqs) s = find_span(p, seq);
    const int2 mine = make_int2(s.unit, s.block);
    int2 sum = mine;
    for (int d = 1; d < p.max_seqs; d *= 2) {
        sums[seq] = sum;
        __syncthreads();
        if (seq >= d) sum.x += sums[seq - d].x, sum.y += sums[seq - d].y;
        __syncthreads();
    }
    if (seq >= p.max_seqs) return;
    s.unit = sum.x - mine.x;
    s.block = sum.y - mine.y;
    p.spans[seq] = s;
    if (seq < p.max_seqs - 1) return;
    chunk_span all = {};
    all.unit = sum.x;
    all.block = sum.y;
    p.spans[p.max_seqs] = all;
}

/* ---- the end of splits ---- */

/* A warp a row: its splits' states, in their order, into the result. */
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_splits(const __grid_constant__ chunk_params p, float *o, float *lse)
{
    const int first = p.q_start[0], n_rows = (p.q_start[p.max_seqs] - first) * p.n_heads;
    const int row = (int)(blockIdx.x * (MERGE_THREADS / 32) + threadIdx.x / 32), lane = threadIdx.x & 31;
    if (row >= n_rows) return;
    const int dim = p.layout.head_dim;
    const int64_t to = (int64_t)first * p.n_heads + row;
    float part = lane < p.n_splits ? p.lse[lane * p.lse_stride + row] : -INFINITY, most = part;
    for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    const float w = part == -INFINITY ? 0 : expf(part - most); /* NaN stays NaN */
    float sum = w;
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    for (int c = 2 * lane; c < dim; c += 64) {
        float2 y = make_float2(0, 0);
        for (int s = 0; s < p.n_splits; s++) {
            const float weight = __shfl_sync(~0u, w, s);
            if (weight == 0) continue;
            const float2 x = *reinterpret_cast<const float2 *>(p.o + s * p.o_stride + (int64_t)row * dim + c);
            y.x = fmaf(weight, x.x, y.x);
            y.y = fmaf(weight, x.y, y.y);
        }
        if (sum != 0) y.x /= sum, y.y /= sum;
        *reinterpret_cast<float2 *>(o + to * dim + c) = y;
    }
    if (lane == 0) lse[to] = sum == 0 ? -INFINITY : most + logf(sum);
}

/* ---- sizes ---- */

/* Where the parts of the workspace begin, from its chunk part's start; parts are multiples of 256 bytes. */
typedef struct chunk_sizes {
    int slab_pages; /* at most */
    size_t tiles, states, bytes;
} chunk_sizes;

static size_t whole(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static chunk_sizes sizes_of(const bs_kv_shape *shape, int n_heads, int max_seqs, int max_tokens,
                            int max_pages)
{
    const size_t page = (size_t)shape->n_kv_heads * 2 * chunk_tile_bytes(shape->head_dim);
    const size_t state = (size_t)max_tokens * (size_t)n_heads * ((size_t)shape->head_dim + 1) * sizeof(float);
    chunk_sizes z;
    z.slab_pages = (int)(SLAB_BYTES / page < SLAB_MAX_PAGES ? SLAB_BYTES / page : SLAB_MAX_PAGES);
    if (z.slab_pages < 1) z.slab_pages = 1;
    if (max_pages < z.slab_pages) z.slab_pages = max_pages;
    z.tiles = whole((size_t)z.slab_pages * page);
    z.states = whole(state * MAX_SPLITS < STATE_BYTES ? state * MAX_SPLITS : STATE_BYTES);
    z.bytes = whole(((size_t)max_seqs + 1) * sizeof(chunk_span)) + z.tiles + z.states;
    return z;
}

static bool has_wgmma(void)
{
#ifdef BS_HAVE_SM90A
    int major, minor;
    return bs_cuda_attribute(cudaDevAttrComputeCapabilityMajor, "attend", &major) == BS_STATUS_OK &&
           bs_cuda_attribute(cudaDevAttrComputeCapabilityMinor, "attend", &minor) == BS_STATUS_OK &&
           major == 9 && minor == 0;
#else
    return false;
#endif
}

/* From how many rows a sequence on: 8 rows of the decode kernels take as long, at 8 KV heads and 128K tokens, as the table in
 * docs/kernels/prefill-attention.md says. */
static int min_rows(const bs_kv_format *f)
{
    return f->k_bits == 4 ? 128 : 64;
}

bool bs_cuda_chunk_takes(const bs_kv_shape *shape, int group, int n_query)
{
    return (int64_t)n_query * group >= min_rows(&shape->format) && has_wgmma();
}

size_t bs_cuda_chunk_workspace(const bs_kv_shape *shape, int n_heads, int max_seqs, int max_tokens,
                               int max_pages)
{
    if (!bs_cuda_chunk_takes(shape, n_heads / shape->n_kv_heads, max_tokens)) return 0;
    return sizes_of(shape, n_heads, max_seqs, max_tokens, max_pages).bytes + 256; /* to align its start */
}

/* Splits that leave the card's SMs least idle: a wave of CTAs takes as long as its pages, and a split costs a
 * hundredth for its state. */
static int splits_of(const chunk_sizes &z, int n_ctas, int n_units, int n_sms, size_t state)
{
    int best = 1;
    double least = 1e30;
    for (int s = 1; s <= MAX_SPLITS; s++) {
        if (s > 1 && (n_units / s < MIN_SPLIT_PAGES || state * (size_t)s > z.states)) break;
        const int64_t waves = ((int64_t)n_ctas * s + n_sms - 1) / n_sms;
        const double cost = (double)waves / s * (1 + 0.01 * (s - 1));
        if (cost < least) {
            least = cost;
            best = s;
        }
    }
    return best;
}

/* ---- the call ---- */

static chunk_params params_of(const bs_attend_args *a)
{
    chunk_params p = {};
    attend_take_args(p, a);
    p.n_splits = 1;
    return p;
}

bs_status bs_cuda_attend_chunk(bs_stream *stream, const bs_attend_args *a)
{
    const bs_kv_shape *shape = a->pools->shape;
    const chunk_sizes z = sizes_of(shape, a->n_heads, a->max_seqs, a->max_tokens, a->max_pages);
    chunk_params p = params_of(a);
    int n_sms;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "attend", &n_sms));
    /* From the workspace's end: the counters of decode at its start must stay 0. */
    uint8_t *at = (uint8_t *)a->workspace + ((a->workspace_bytes - z.bytes) & ~(size_t)255);
    p.tiles = at;
    float *const states = (float *)(at + z.tiles);
    p.spans = (chunk_span *)(at + z.tiles + z.states);
    /* Pages that can be seen at all. */
    int64_t n_units = a->max_pages;
    if (a->window > 0) {
        const int64_t most = ((int64_t)a->window + a->max_tokens) / BS_PAGE_TOKENS + 2;
        if (most * a->max_seqs < n_units) n_units = most * a->max_seqs;
    }
    const int64_t rows = (int64_t)a->max_tokens * p.group;
    const int max_blocks = (int)((rows + CHUNK_ROWS - 1) / CHUNK_ROWS) + a->max_seqs - 1;
    int n_slabs = z.slab_pages > 0 ? (int)((n_units + z.slab_pages - 1) / z.slab_pages) : 0;
    if (n_slabs < 1) n_slabs = 1; /* somebody must write an empty result */
    p.n_units = (int)((n_units + n_slabs - 1) / n_slabs);
    const size_t n_rows = (size_t)a->max_tokens * (size_t)a->n_heads,
                 state = n_rows * ((size_t)shape->head_dim + 1) * sizeof(float);
    p.n_splits = splits_of(z, max_blocks * shape->n_kv_heads, p.n_units, n_sms, state);
    if (p.n_splits > 1) {
        p.o = states;
        p.o_stride = (int64_t)n_rows * shape->head_dim;
        p.lse = states + (size_t)p.n_splits * n_rows * (size_t)shape->head_dim;
        p.lse_stride = (int64_t)n_rows;
    }
    plan_kernel<<<1, PLAN_THREADS, 0, bs_cuda_stream(stream)>>>(p);
    BS_TRY(bs_cuda_launched("attend"));
    for (int slab = 0; slab < n_slabs; slab++) {
        p.unit0 = slab * p.n_units;
        if (p.n_units > 0) BS_TRY(bs_cuda_dequantize_tiles(stream, &p));
        BS_TRY(bs_cuda_chunk_slab(stream, &p, max_blocks, slab == 0));
    }
    if (p.n_splits == 1) return BS_STATUS_OK;
    const unsigned n_ctas = (unsigned)((n_rows + MERGE_THREADS / 32 - 1) / (MERGE_THREADS / 32));
    merge_splits<<<n_ctas, MERGE_THREADS, 0, bs_cuda_stream(stream)>>>(p, a->o, a->lse);
    return bs_cuda_launched("attend");
}
