/* sample.cu: the candidates of all shards become one token a row.
 *
 * Math     top-k, then top-p, then min-p of the merged list; the first whose cumulative weight exceeds u times the
 * sum of what is left, u from Philox4x32-10 (kernels.h).
 * Layout   candidates [n_shards] × [rows, n_per_shard], each sorted, ids of −1 behind.
 * Mapping  a CTA of 1,024 threads a row. A candidate's place in the merged list is its own place plus, by binary
 * search, how many of each other shard are better. Up to 16,384 candidates are merged in shared memory; more by a
 * launch of their own into scratch, row after row; one shard's list is used where it stands. Each thread then owns
 * a stretch of the list, and a scan of the stretches' weights says who holds the threshold.
 * Cost     greedy or 256 candidates a shard: a launch. The whole vocabulary of 128,256: 1 MB read and as many
 * exponentials in f64 by one SM, some 50 us.
 * Numerics weights and sums in f64, a stretch in order, then a fixed tree: the CPU's token unless u is within 1e-13
 * of an edge.
 * Limits   a row without a candidate is recorded, reported by bs_stream_check, and its token is 0.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/fault.h"
#include "kernels/cuda/overlap.h"
#include "kernels/philox.h"

enum { WARP = 32, THREADS = 1024, MAX_IN_SMEM = 16384 };

typedef enum list_place { LIST_AS_IT_IS, LIST_IN_SMEM, LIST_IN_SCRATCH } list_place;

typedef struct job {
    bs_sample_args a;
    bs_cuda_fault fault;
    int first_row;
    list_place place;
} job;

static __device__ __forceinline__ bool is_better(bs_candidate a, bs_candidate b)
{
    return a.id >= 0 && (b.id < 0 || a.logit > b.logit || (a.logit == b.logit && a.id < b.id));
}

static __device__ __forceinline__ const bs_candidate *shard_list(const bs_sample_args &a, int shard, int row)
{
    return a.candidates + shard * a.shard_stride + (int64_t)row * a.n_per_shard;
}

/* How many of a sorted list are better. */
static __device__ int count_better(const bs_candidate *list, int n, bs_candidate than)
{
    int low = 0;
    while (n > 0) {
        const int half = n / 2;
        if (is_better(list[low + half], than)) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

/* Puts candidate i of all (shard after shard) at its place, if that is below limit. */
static __device__ void place_candidate(const bs_sample_args &a, int row, int i, int limit,
                                       bs_candidate *merged)
{
    const int shard = i / a.n_per_shard;
    int place = i % a.n_per_shard;
    const bs_candidate mine = shard_list(a, shard, row)[place];
    if (mine.id < 0) return;
    for (int s = 0; s < a.n_shards && place < limit; s++)
        if (s != shard) place += count_better(shard_list(a, s, row), min(a.n_per_shard, limit), mine);
    if (place < limit) merged[place] = mine;
}

static __device__ int limit_of(const bs_sample_args &a, const bs_sampling &s)
{
    const int all = a.n_shards * a.n_per_shard;
    if (!(s.temperature > 0)) return 1;
    return s.top_k > 0 && s.top_k < all ? s.top_k : all;
}

static __global__ void __launch_bounds__(THREADS) merge_lists_kernel(job j)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= j.a.n_shards * j.a.n_per_shard) return;
    place_candidate(j.a, j.first_row, i, limit_of(j.a, j.a.sampling[j.first_row]), j.a.scratch);
}

/* ---- sums over the list ---- */

typedef struct draw_state {
    double warp_sums[WARP], total;
    int n, first;
} draw_state;

/* Sum of all threads before this one, in thread order; *total of all. */
static __device__ double scan_cta(draw_state *s, double x, double *total)
{
    double running = x, before = 0;
    for (int stride = 1; stride < WARP; stride *= 2) {
        const double below = __shfl_up_sync(0xffffffffu, running, stride);
        if (threadIdx.x % WARP >= (unsigned)stride) running += below;
    }
    if (threadIdx.x % WARP == WARP - 1) s->warp_sums[threadIdx.x / WARP] = running;
    __syncthreads();
    *total = 0;
    for (unsigned w = 0; w < THREADS / WARP; w++) {
        if (w == threadIdx.x / WARP) before = *total;
        *total += s->warp_sums[w];
    }
    const double inclusive = __shfl_up_sync(0xffffffffu, running, 1);
    return threadIdx.x % WARP == 0 ? before : before + inclusive;
}

static __device__ __forceinline__ double weight(const bs_candidate *list, int i, float best)
{
    return exp((double)list[i].logit - best);
}

/* A thread's stretch of the list, and the weights before it and in it. */
typedef struct stretch {
    int first, last;
    double before, sum;
} stretch;

/* The first place whose cumulative weight exceeds the threshold (or reaches it), n if none; the same in all
 * threads. */
static __device__ int find_place(draw_state *s, const bs_candidate *list, int n, const stretch &own,
                                 double threshold, bool reaches)
{
    const float best = list[0].logit;
    __syncthreads();
    if (threadIdx.x == 0) s->first = n;
    __syncthreads();
    if (own.first < n &&
        (own.before + own.sum > threshold || (reaches && own.before + own.sum >= threshold))) {
        double running = 0;
        for (int i = own.first; i < min(own.last, n); i++) {
            running += weight(list, i, best);
            if (own.before + running > threshold || (reaches && own.before + running >= threshold)) {
                atomicMin(&s->first, i);
                break;
            }
        }
    }
    __syncthreads();
    return s->first;
}

static __device__ int cut_min_p(const bs_candidate *list, int n, float min_p)
{
    int low = 1;
    for (int left = n - 1; left > 0;) {
        const int half = left / 2;
        if (weight(list, low + half, list[0].logit) >= min_p) {
            low += half + 1;
            left -= half + 1;
        } else {
            left = half;
        }
    }
    return low;
}

/* Sum of the first n weights. */
static __device__ double sum_of_first(draw_state *s, const bs_candidate *list, int n, const stretch &own)
{
    const float best = list[0].logit;
    __syncthreads();
    if (own.first < n && n <= own.last) {
        double running = 0;
        for (int i = own.first; i < n; i++) running += weight(list, i, best);
        s->total = own.before + running;
    }
    __syncthreads();
    return s->total;
}

/* Place of the drawn token; all threads. */
static __device__ int draw(draw_state *state, const bs_candidate *list, int n, const bs_sampling &s,
                           int position, int number)
{
    const float best = list[0].logit;
    const int length = (n + THREADS - 1) / THREADS;
    stretch own = {min((int)threadIdx.x * length, n), min((int)(threadIdx.x + 1) * length, n), 0, 0};
    double total;
    for (int i = own.first; i < own.last; i++) own.sum += weight(list, i, best);
    own.before = scan_cta(state, own.sum, &total);
    int kept = n;
    if (s.top_p < 1) {
        const int edge = find_place(state, list, n, own, (double)s.top_p * total, true);
        if (edge < n) kept = edge + 1;
    }
    if (s.min_p > 0) kept = cut_min_p(list, kept, s.min_p);
    if (kept < n) total = sum_of_first(state, list, kept, own);
    const double u = bs_philox_uniform(s.seed, position, number);
    const int place = find_place(state, list, kept, own, u * total, false);
    return place < kept ? place : kept - 1;
}

static __device__ float total_lse(const bs_sample_args &a, int row)
{
    float max = -INFINITY;
    double sum = 0;
    for (int s = 0; s < a.n_shards; s++) max = fmaxf(max, a.lse[s * a.lse_stride + row]);
    if (max == -INFINITY) return max;
    for (int s = 0; s < a.n_shards; s++) {
        const float lse = a.lse[s * a.lse_stride + row];
        if (lse != -INFINITY) sum += exp((double)lse - max);
    }
    return (float)(max + log(sum));
}

static __global__ void __launch_bounds__(THREADS) sample_kernel(job j)
{
    extern __shared__ bs_candidate in_smem[];
    __shared__ draw_state state;
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const bs_sample_args &a = j.a;
    const int row = j.first_row + (int)blockIdx.x;
    const bs_sampling s = a.sampling[row];
    const int limit = limit_of(a, s);
    if (threadIdx.x == 0) state.n = 0;
    __syncthreads();
    for (int shard = threadIdx.x; shard < a.n_shards; shard += THREADS) {
        const bs_candidate none = {-INFINITY, -1}; /* what is better than it is a candidate */
        atomicAdd(&state.n, count_better(shard_list(a, shard, row), min(a.n_per_shard, limit), none));
    }
    if (j.place == LIST_IN_SMEM)
        for (int i = threadIdx.x; i < a.n_shards * a.n_per_shard; i += THREADS)
            if (i % a.n_per_shard < limit) place_candidate(a, row, i, limit, in_smem);
    __syncthreads();
    const bs_candidate *list = j.place == LIST_IN_SMEM      ? in_smem
                               : j.place == LIST_IN_SCRATCH ? a.scratch
                                                            : shard_list(a, 0, row);
    const int n = min(state.n, limit);
    if (n < 1) {
        if (threadIdx.x > 0) return;
        bs_cuda_fault_set_logit(j.fault, BS_FAULT_NO_CANDIDATE, a.position[row]);
        a.token[row] = 0;
        if (a.logprob) a.logprob[row] = -INFINITY;
        return;
    }
    const int chosen = n > 1 ? draw(&state, list, n, s, a.position[row], a.draw[row]) : 0;
    if (threadIdx.x > 0) return;
    a.token[row] = list[chosen].id;
    if (a.logprob) a.logprob[row] = list[chosen].logit - total_lse(a, row);
}

bs_status bs_cuda_sample(bs_stream *stream, const bs_sample_args *args)
{
    const int64_t n = (int64_t)args->n_shards * args->n_per_shard;
    if (n > INT32_MAX - THREADS)
        return bs_fail(BS_STATUS_RANGE, "sample: %d shards of %d candidates are too many", args->n_shards,
                       args->n_per_shard);
    job j = {*args, bs_cuda_stream_fault(stream), 0, LIST_AS_IT_IS};
    size_t smem_bytes = 0;
    int a_launch = args->n_rows;
    if (args->n_shards > 1) {
        j.place = n <= MAX_IN_SMEM ? LIST_IN_SMEM : LIST_IN_SCRATCH;
        if (j.place == LIST_IN_SMEM) smem_bytes = (size_t)n * sizeof(bs_candidate);
        else a_launch = 1; /* one scratch */
    }
    BS_TRY(bs_cuda_status(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               MAX_IN_SMEM * (int)sizeof(bs_candidate)),
                          "sample"));
    for (; j.first_row < args->n_rows; j.first_row += a_launch) {
        if (j.place == LIST_IN_SCRATCH)
            BS_TRY(bs_cuda_launch(stream, "sample", merge_lists_kernel,
                                  dim3((unsigned)((n + THREADS - 1) / THREADS)), dim3(THREADS), 0, j));
        BS_TRY(bs_cuda_launch(stream, "sample", sample_kernel, dim3((unsigned)a_launch), dim3(THREADS),
                              smem_bytes, j));
    }
    return BS_STATUS_OK;
}
