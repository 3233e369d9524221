/* candidates.cu: a vocabulary shard's part of sampling: penalty, temperature, the best few or all in order, the
 * log-sum-exp.
 *
 * Math     logit > 0 ? l/p : l·p where seen, then l/temperature; descending by logit, ties to the lower id.
 * Layout   logits [rows, ld] f32 in place; seen: bitmaps of 64-bit words; out [rows, n_out].
 * Mapping  a row is cut into parts of 4,096 ids (more where 64 parts are not enough), a CTA each. A logit and its id
 * are one 64-bit key, distinct and in the order that is wanted. Best 256: each part selects its own by a radix select
 * over 11 bits a pass, then one CTA a row selects among the parts' and orders 256 by counting; a greedy row's best is a
 * maximum in both. All: each part is
 * sorted (bitonic, shared memory), then 8 runs at a time are merged, each key finding its place by binary search.
 * Cost     best 256 of 128,256: 0.5 MB read, 64 KB of keys: two launches, latency is the time. All: 1 MB written
 * three times, 60 million steps of binary searches in the L1 and L2.
 * Numerics divisions are IEEE's, so logits and their order are the CPU's bits (−0 counts as 0); log-sum-exp in f32
 * within a part of 4,096, double across parts.
 * Limits   a shard of at most 2^20 ids; n_out at most 256, or at least the shard. A NaN is recorded and reported by
 * bs_stream_check. The workspace is the device's (dense.h): rows take turns in it.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/fault.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum {
    WARP = 32,
    THREADS = 1024,
    WAYS = 8, /* runs that are merged at a time */
    MAX_PARTS = 64,
    PART_IDS = 4096,
    MAX_IDS = 1 << 20,
    PART_BYTES = BS_MAX_CANDIDATES * 8, /* of the workspace: a part's best */
};

typedef struct job {
    bs_candidates_args a;
    bs_cuda_fault fault;
    int n_parts, part_ids;
    uint64_t *keys; /* workspace: [rows][n_parts][256], or [rows][n_vocab] */
    float2 *sums;   /* workspace: [rows][n_parts] maximum and Σ exp(x − maximum) */
} job;

static __device__ __forceinline__ uint64_t key_of(float logit, int32_t place)
{
    const uint32_t u = __float_as_uint(logit + 0.0f); /* −0 becomes 0 */
    const uint32_t ordered = u >> 31 ? ~u : u | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t)~place;
}

static __device__ __forceinline__ bs_candidate candidate_of(uint64_t key, int32_t vocab0)
{
    const uint32_t ordered = (uint32_t)(key >> 32);
    bs_candidate c;
    c.logit = __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
    c.id = vocab0 + (int32_t) ~(uint32_t)key;
    return c;
}

/* ---- a part's logits ---- */

static __device__ float adjusted(const job &j, const bs_sampling &s, const uint64_t *seen, float logit,
                                 int place)
{
    if (seen && s.repeat_penalty != 1) {
        const uint32_t id = (uint32_t)(j.a.vocab0 + place);
        if (seen[id / 64] >> id % 64 & 1)
            logit = logit > 0 ? logit / s.repeat_penalty : logit * s.repeat_penalty;
    }
    return s.temperature > 0 ? logit / s.temperature : logit;
}

static __device__ __forceinline__ float max_warp(float x)
{
    for (int stride = WARP / 2; stride > 0; stride /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, stride));
    return x;
}

/* Of all threads, from what is the same in a warp's lanes: the warps' values, one a lane. */
static __device__ __forceinline__ float share_warps(float x, float *scratch)
{
    __syncthreads(); /* scratch may still be read */
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return scratch[threadIdx.x % (THREADS / WARP)];
}

/* Adjusts the part's logits in place, makes its keys, and its sum of exponentials. */
static __device__ int take_part(const job &j, uint64_t *keys)
{
    __shared__ float scratch[THREADS / WARP];
    const int part = blockIdx.x, row = blockIdx.y, first = part * j.part_ids;
    const int n = min(j.part_ids, j.a.n_vocab - first);
    const bs_sampling s = j.a.sampling[row];
    const uint64_t *seen = j.a.seen ? j.a.seen[row] : nullptr;
    const bool changes = s.temperature > 0 || (seen && s.repeat_penalty != 1);
    float *logits = j.a.logits + row * j.a.ld + first;
    float best = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        float x = logits[i];
        if (changes) logits[i] = x = adjusted(j, s, seen, x, first + i);
        if (isnan(x)) bs_cuda_fault_set_logit(j.fault, BS_FAULT_LOGIT, j.a.vocab0 + first + i);
        keys[i] = key_of(x, first + i);
        best = fmaxf(best, x);
    }
    best = max_warp(share_warps(max_warp(best), scratch));
    for (int i = threadIdx.x; i < n && best != -INFINITY; i += THREADS)
        sum += expf(candidate_of(keys[i], 0).logit - best); /* a thread's own keys */
    sum = bs_cuda_sum_warp(share_warps(bs_cuda_sum_warp(sum), scratch));
    if (threadIdx.x == 0) j.sums[(int64_t)row * j.n_parts + part] = make_float2(best, sum);
    return n;
}

/* The row's log-sum-exp, by the first warp. */
static __device__ void write_lse(const job &j, int row)
{
    const float2 *sums = j.sums + (int64_t)row * j.n_parts;
    float best = -INFINITY;
    double sum = 0;
    if (threadIdx.x >= WARP) return;
    for (int i = threadIdx.x; i < j.n_parts; i += WARP) best = fmaxf(best, sums[i].x);
    best = max_warp(best);
    for (int i = threadIdx.x; i < j.n_parts; i += WARP)
        if (sums[i].x != -INFINITY) sum += (double)sums[i].y * exp((double)sums[i].x - best);
    sum = bs_cuda_sum_warp(sum);
    if (threadIdx.x == 0) j.a.lse[row] = best == -INFINITY ? best : (float)(best + log(sum));
}

/* ---- the best few ---- */

enum { DIGIT_BITS = 11, N_DIGITS = 1 << DIGIT_BITS, DIGITS_A_THREAD = N_DIGITS / THREADS };

typedef struct select_state {
    uint32_t counts[N_DIGITS], warp_sums[WARP];
    uint32_t digit, before, inside; /* the digit that holds the k-th key, keys above it, keys of it */
    uint32_t n_taken;
} select_state;

/* Finds the digit (from the top) where the running count reaches k. Digits of a thread are neighbours. */
static __device__ void find_digit(select_state *s, uint32_t k)
{
    uint32_t count[DIGITS_A_THREAD], sum = 0;
#pragma unroll
    for (int d = 0; d < DIGITS_A_THREAD; d++)
        sum += count[d] = s->counts[N_DIGITS - 1 - ((int)threadIdx.x * DIGITS_A_THREAD + d)];
    uint32_t running = sum;
    for (int stride = 1; stride < WARP; stride *= 2) {
        const uint32_t below = __shfl_up_sync(0xffffffffu, running, stride);
        if (threadIdx.x % WARP >= (unsigned)stride) running += below;
    }
    if (threadIdx.x % WARP == WARP - 1) s->warp_sums[threadIdx.x / WARP] = running;
    __syncthreads();
    running -= sum;
    for (unsigned w = 0; w < threadIdx.x / WARP; w++) running += s->warp_sums[w];
#pragma unroll
    for (int d = 0; d < DIGITS_A_THREAD; d++) {
        if (running < k && running + count[d] >= k) {
            s->digit = (uint32_t)(N_DIGITS - 1 - ((int)threadIdx.x * DIGITS_A_THREAD + d));
            s->before = running;
            s->inside = count[d];
        }
        running += count[d];
    }
    __syncthreads();
}

/* The least of the k greatest keys; 1 ≤ k ≤ n. */
static __device__ uint64_t find_least(select_state *s, const uint64_t *keys, int n, uint32_t k)
{
    uint64_t prefix = 0;
    for (int shift = 64 - DIGIT_BITS;; shift = shift > DIGIT_BITS ? shift - DIGIT_BITS : 0) {
        const int above = shift == 64 - DIGIT_BITS ? 64 : shift == 0 ? 64 % DIGIT_BITS : shift + DIGIT_BITS;
        for (int d = threadIdx.x; d < N_DIGITS; d += THREADS) s->counts[d] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS)
            if (above == 64 || keys[i] >> above == prefix)
                atomicAdd(&s->counts[keys[i] >> shift & ((1ull << (above - shift)) - 1)], 1u);
        __syncthreads();
        find_digit(s, k);
        prefix = prefix << (above - shift) | s->digit;
        k -= s->before;
        if (s->inside == k || shift == 0) return prefix << shift;
        __syncthreads(); /* counts are cleared next, digit and its like written again */
    }
}

/* The k greatest of n keys to out, in any order; the rest of 256 is 0. */
static __device__ void select_best(select_state *s, const uint64_t *keys, int n, int k, uint64_t *out)
{
    if (k > n) k = n;
    const uint64_t least = k == n ? 0 : find_least(s, keys, n, (uint32_t)k);
    if (threadIdx.x == 0) s->n_taken = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += THREADS)
        if (keys[i] >= least) out[atomicAdd(&s->n_taken, 1u)] = keys[i];
    for (int i = k + (int)threadIdx.x; i < BS_MAX_CANDIDATES; i += THREADS) out[i] = 0;
}

static __device__ __forceinline__ bool is_greedy(const job &j, int row)
{
    return !(j.a.sampling[row].temperature > 0);
}

/* The greatest of all threads' keys, in the first warp. */
static __device__ uint64_t max_cta(uint64_t key)
{
    __shared__ uint64_t warps[THREADS / WARP];
    for (int stride = WARP / 2; stride > 0; stride /= 2)
        key = max(key, (uint64_t)__shfl_xor_sync(0xffffffffu, (unsigned long long)key, stride));
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = key;
    __syncthreads();
    if (threadIdx.x >= WARP) return 0;
    key = warps[threadIdx.x];
    for (int stride = WARP / 2; stride > 0; stride /= 2)
        key = max(key, (uint64_t)__shfl_xor_sync(0xffffffffu, (unsigned long long)key, stride));
    return key;
}

/* A greedy row's part leaves its best key alone. */
static __global__ void __launch_bounds__(THREADS) select_part_kernel(job j)
{
    extern __shared__ uint64_t keys[];
    __shared__ select_state state;
    bs_cuda_release_next();
    bs_cuda_wait_before();
    uint64_t *out = j.keys + ((int64_t)blockIdx.y * j.n_parts + blockIdx.x) * BS_MAX_CANDIDATES;
    const int n = take_part(j, keys);
    if (is_greedy(j, blockIdx.y)) {
        uint64_t best = 0;
        for (int i = threadIdx.x; i < n; i += THREADS) best = max(best, keys[i]); /* its own */
        best = max_cta(best);
        if (threadIdx.x == 0) *out = best;
        return;
    }
    __syncthreads();
    select_best(&state, keys, n, j.a.n_out, out);
}

/* The best of a greedy row's parts. */
static __device__ void finish_greedy(const job &j, int row, bs_candidate *out)
{
    const uint64_t *parts = j.keys + (int64_t)row * j.n_parts * BS_MAX_CANDIDATES;
    const uint64_t best = max_cta((int)threadIdx.x < j.n_parts ? parts[threadIdx.x * BS_MAX_CANDIDATES] : 0);
    if (threadIdx.x == 0 && best != 0) out[0] = candidate_of(best, j.a.vocab0);
    for (int i = (j.n_parts > 0) + (int)threadIdx.x; i < j.a.n_out; i += THREADS) out[i] = {-INFINITY, -1};
}

/* The best of the parts' best, each at the place that the number of greater keys says. */
static __global__ void __launch_bounds__(THREADS) select_row_kernel(job j)
{
    extern __shared__ uint64_t keys[];
    __shared__ select_state state;
    __shared__ uint64_t best[BS_MAX_CANDIDATES];
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int row = blockIdx.x, n = j.n_parts * BS_MAX_CANDIDATES;
    bs_candidate *out = j.a.out + (int64_t)row * j.a.n_out;
    if (is_greedy(j, row)) {
        finish_greedy(j, row, out);
        write_lse(j, row);
        return;
    }
    for (int i = threadIdx.x; i < n; i += THREADS) keys[i] = j.keys[(int64_t)row * n + i];
    write_lse(j, row);
    __syncthreads();
    select_best(&state, keys, n, min(j.a.n_out, j.a.n_vocab), best);
    __syncthreads();
    const uint64_t mine = threadIdx.x < BS_MAX_CANDIDATES ? best[threadIdx.x] : 0;
    if (mine != 0) {
        int place = 0;
        for (int i = 0; i < BS_MAX_CANDIDATES; i++) place += best[i] > mine;
        out[place] = candidate_of(mine, j.a.vocab0);
    }
    for (int i = j.a.n_vocab + (int)threadIdx.x; i < j.a.n_out; i += THREADS) out[i] = {-INFINITY, -1};
}

/* ---- all in order ---- */

/* Sorts the part and writes its keys, or, where it is the whole shard, its candidates. */
static __global__ void __launch_bounds__(THREADS) sort_part_kernel(job j, uint64_t *to, int64_t ld, int room)
{
    extern __shared__ uint64_t keys[];
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int n = take_part(j, keys);
    for (int i = n + (int)threadIdx.x; i < room; i += THREADS) keys[i] = 0;
    __syncthreads();
    for (int run = 2; run <= room; run *= 2)
        for (int stride = run / 2; stride > 0; stride /= 2) {
            for (int i = threadIdx.x; i < room / 2; i += THREADS) {
                const int low = 2 * i - (i & (stride - 1)), high = low + stride;
                const uint64_t a = keys[low], b = keys[high];
                if ((a < b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    to += blockIdx.y * ld + (int64_t)blockIdx.x * j.part_ids;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        if (j.n_parts > 1) to[i] = keys[i];
        else ((bs_candidate *)to)[i] = candidate_of(keys[i], j.a.vocab0);
    }
}

/* How many of n descending keys are greater. */
static __device__ __forceinline__ int count_greater(const uint64_t *keys, int n, uint64_t than)
{
    int low = 0;
    while (n > 0) {
        const int half = n / 2;
        if (keys[low + half] > than) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

/* Merges WAYS runs of run_ids keys at a time: a key's place is how many of all are greater. */
static __global__ void __launch_bounds__(THREADS)
    merge_runs_kernel(job j, const uint64_t *from, int64_t ld_from, uint64_t *to, int64_t ld_to, int run_ids,
                      bool last)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x), n = j.a.n_vocab;
    from += blockIdx.y * ld_from;
    to += blockIdx.y * ld_to;
    if (i < n) {
        const uint64_t key = from[i];
        const int own = i / run_ids, first = own / WAYS * WAYS;
        int place = first * run_ids + i % run_ids;
        for (int run = first; run < first + WAYS && (int64_t)run * run_ids < n; run++)
            if (run != own)
                place += count_greater(from + run * run_ids, min(run_ids, n - run * run_ids), key);
        if (last) ((bs_candidate *)to)[place] = candidate_of(key, j.a.vocab0);
        else to[place] = key;
    }
}

/* What comes behind all ids, and the log-sum-exp. */
static __global__ void __launch_bounds__(THREADS) end_rows_kernel(job j)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int row = blockIdx.x;
    bs_candidate *out = j.a.out + (int64_t)row * j.a.n_out;
    for (int i = j.a.n_vocab + (int)threadIdx.x; i < j.a.n_out; i += THREADS) out[i] = {-INFINITY, -1};
    write_lse(j, row);
}

/* ---- launches ---- */

static bs_status allow_smem(const void *kernel, size_t bytes)
{
    return bs_cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "candidates");
}

static bs_status queue_best(bs_stream *stream, const job &j)
{
    const size_t part_bytes = (size_t)j.part_ids * 8, row_bytes = (size_t)j.n_parts * PART_BYTES;
    const unsigned n_rows = (unsigned)j.a.n_rows;
    BS_TRY(allow_smem((const void *)select_part_kernel, part_bytes));
    BS_TRY(allow_smem((const void *)select_row_kernel, row_bytes));
    if (j.n_parts > 0)
        BS_TRY(bs_cuda_launch(stream, "candidates", select_part_kernel, dim3((unsigned)j.n_parts, n_rows),
                              dim3(THREADS), part_bytes, j));
    return bs_cuda_launch(stream, "candidates", select_row_kernel, dim3(n_rows), dim3(THREADS), row_bytes, j);
}

/* Passes alternate between the workspace and out, so that the last one ends in out. */
static bs_status queue_all(bs_stream *stream, const job &j)
{
    const unsigned n_rows = (unsigned)j.a.n_rows, n_ctas = (unsigned)((j.a.n_vocab - 1) / THREADS + 1);
    uint64_t *const buffers[2] = {(uint64_t *)j.a.out, j.keys};
    const int64_t lds[2] = {j.a.n_out, j.a.n_vocab};
    int room = 1, left = 0;
    while (room < j.part_ids) room *= 2;
    for (int64_t ids = j.part_ids; ids < j.a.n_vocab; ids *= WAYS) left++;
    if (j.n_parts > 0) {
        BS_TRY(allow_smem((const void *)sort_part_kernel, (size_t)room * 8));
        BS_TRY(bs_cuda_launch(stream, "candidates", sort_part_kernel, dim3((unsigned)j.n_parts, n_rows),
                              dim3(THREADS), (size_t)room * 8, j, buffers[left % 2], lds[left % 2], room));
    }
    for (int run_ids = j.part_ids; left > 0; run_ids *= WAYS) {
        const int from = left % 2, to = 1 - from;
        BS_TRY(bs_cuda_launch(stream, "candidates", merge_runs_kernel, dim3(n_ctas, n_rows), dim3(THREADS), 0,
                              j, (const uint64_t *)buffers[from], lds[from], buffers[to], lds[to], run_ids,
                              left == 1));
        left--;
    }
    return bs_cuda_launch(stream, "candidates", end_rows_kernel, dim3(n_rows), dim3(THREADS), 0, j);
}

bs_status bs_cuda_candidates(bs_stream *stream, const bs_candidates_args *args)
{
    const bool best = args->n_out <= BS_MAX_CANDIDATES;
    if (!best && args->n_out < args->n_vocab)
        return bs_fail(BS_STATUS_RANGE, "candidates: n_out %d; must be at most %d, or the whole shard of %d",
                       args->n_out, BS_MAX_CANDIDATES, args->n_vocab);
    if (args->n_vocab > MAX_IDS)
        return bs_fail(BS_STATUS_RANGE, "candidates: %d ids; a shard has at most %d", args->n_vocab, MAX_IDS);
    if ((uintptr_t)args->out % sizeof(uint64_t))
        return bs_fail(BS_STATUS_RANGE, "candidates: out must be 8-byte aligned");
    job j;
    j.fault = bs_cuda_stream_fault(stream);
    j.part_ids = PART_IDS;
    while ((int64_t)j.part_ids * MAX_PARTS < args->n_vocab) j.part_ids *= 2;
    j.n_parts = (args->n_vocab + j.part_ids - 1) / j.part_ids;
    const size_t row_bytes = best ? (size_t)j.n_parts * PART_BYTES : (size_t)args->n_vocab * 8;
    const int max_rows = (int)(BS_CUDA_SAMPLING_BYTES / (row_bytes + MAX_PARTS * sizeof(float2)));
    j.sums = (float2 *)bs_cuda_dense_of(stream)->sampling;
    j.keys = (uint64_t *)(j.sums + max_rows * MAX_PARTS);
    for (int row = 0; row < args->n_rows; row += max_rows) {
        j.a = *args;
        j.a.n_rows = args->n_rows - row < max_rows ? args->n_rows - row : max_rows;
        j.a.logits += row * args->ld;
        j.a.sampling += row;
        if (args->seen) j.a.seen += row;
        j.a.out += (int64_t)row * args->n_out;
        j.a.lse += row;
        BS_TRY(best ? queue_best(stream, j) : queue_all(stream, j));
    }
    return BS_STATUS_OK;
}
