/* attend_plan.cuh: who computes what. Lengths live in device memory and grow under a graph, so each CTA finds
 * its share by itself, with little code: it is serial and stands before the first byte.
 *
 * A job is one (sequence, KV head, block of rows); its units are the sequence's visible pages, f16 pages cut
 * into slices of about a quantized page's bytes. Jobs stand in one row (sequence, head, block), and every CTA
 * takes an equal run of that row of units; when all jobs are alike and fit, runs end where jobs end (a job
 * more is a merge more), and short ones are cut into no more runs than pay: each is a state to be merged, and an SM
 * without one begins the dense work behind. A CTA's piece of a job is a segment; its W
 * warps take the units of the CTA's run in turn.
 */
#ifndef BS_CUDA_ATTEND_PLAN_CUH
#define BS_CUDA_ATTEND_PLAN_CUH

#include "kernels/cuda/attend.cuh"

enum {
    ALIGNED_UNITS = 384, /* units of a run, at most, whose end is moved to its job's */
    FEW_RUNS = 10        /* of a job, at most, while they leave every warp a unit at most */
};

/* `runs` equal runs over `units` units, the first `longer` of them one unit longer than `each`; repeated for
 * every job when jobs are alike. No run is empty. */
typedef struct attend_plan {
    uint32_t units, runs, each, longer, total;
    uint32_t first, end; /* of this CTA's run, in the row of all units */
} attend_plan;

/* x / y for quotients below 2^21: the float's error is less than 1. */
static __device__ __forceinline__ uint32_t attend_quotient(uint32_t x, uint32_t y)
{
    uint32_t q = __float2uint_rz(__fdividef((float)x, (float)y));
    int32_t rest = (int32_t)(x - q * y);
    if (rest < 0) q--, rest += (int32_t)y;
    return (uint32_t)rest >= y ? q + 1 : q;
}

/* Whether blocks of rows read the same pages, at about the same time: they should find them in L2. */
static __device__ __forceinline__ bool rows_share_pages(const attend_params &p, int rows)
{
    return p.max_query * p.group > rows;
}

/* First entry of [first, end) whose page number is at least `page`. */
static __device__ __noinline__ int attend_lower_bound(const int32_t *index, int first, int end, int page)
{
    while (first < end) {
        int middle = (first + end) >> 1;
        if (index[middle] < page) first = middle + 1;
        else end = middle;
    }
    return first;
}

static __device__ __forceinline__ attend_span attend_find_span(const attend_params &p, int seq, int rows)
{
    attend_span s;
    const int start = p.q_start[seq], n_query = p.q_start[seq + 1] - start, pos0 = p.q_pos0[seq],
              length = p.n_tokens[seq];
    const int counts[3] = {p.n_sink[seq], p.n_quant[seq], p.n_f16[seq]};
    const bool any = pos0 >= 0 && length > 0;
    int at = p.page_start[seq];
#pragma unroll
    for (int i = 0; i < 3; i++) {
        s.first[i] = at;
        s.n[i] = any ? counts[i] : 0;
        at += counts[i];
    }
    if (p.window > 0 && pos0 - p.window + 1 > 0 && any) {
        const int page = (pos0 - p.window + 1) / BS_PAGE_TOKENS;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const int from = attend_lower_bound(p.page_index, s.first[i], s.first[i] + s.n[i], page);
            s.n[i] -= from - s.first[i];
            s.first[i] = from;
        }
    }
    s.units = ((uint32_t)(s.n[0] + s.n[2]) << (7 - p.slice_log2)) + (uint32_t)s.n[1];
    if (s.units == 0) s.units = 1; /* somebody must write an empty result */
    if (n_query <= 0) s.units = 0;
    s.q_start = start;
    s.n_query = n_query;
    s.pos0 = pos0;
    s.n_seen = min(length, pos0 + n_query);
    s.blocks = (n_query * p.group + rows - 1) / rows;
    s.end = s.units * (uint32_t)(p.layout.n_kv_heads * s.blocks);
    return s;
}

/* Where the CTA's run begins and ends in the row of all units. */
static __device__ __forceinline__ void attend_take_run(attend_plan *plan)
{
    uint32_t job = 0, run = blockIdx.x;
    if (plan->units < plan->total) {
        job = attend_quotient(run, plan->runs);
        run -= job * plan->runs;
    }
    plan->first = job * plan->units + run * plan->each + min(run, plan->longer);
    plan->end = plan->first;
    if (run < plan->runs && plan->first < plan->total) plan->end += plan->each + (run < plan->longer);
}

/* All threads: the spans of all sequences in shared memory, their running sum, and the plan. Ends with a
 * barrier. */
static __device__ __forceinline__ void attend_make_plan(const attend_params &p, attend_span *spans,
                                                        attend_plan *plan, int rows)
{
#pragma unroll 1
    for (int b = threadIdx.x; b < p.max_seqs; b += blockDim.x) spans[b] = attend_find_span(p, b, rows);
    if (p.max_seqs > 32) __syncthreads();
    else __syncwarp();
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        uint32_t sum = 0, least = 0xffffffffu, most = 0, jobs = 0;
#pragma unroll 1
        for (int base = 0; base < p.max_seqs; base += 32) {
            const bool mine = base + lane < p.max_seqs;
            uint32_t run = mine ? spans[base + lane].end : 0;
            const uint32_t units = mine ? spans[base + lane].units : 0;
            if (units > 0) {
                least = min(least, units);
                most = max(most, units);
                jobs += (uint32_t)(p.layout.n_kv_heads * spans[base + lane].blocks);
            }
#pragma unroll 1
            for (int d = 1; d < 32 && d < p.max_seqs; d *= 2) {
                const uint32_t other = __shfl_up_sync(~0u, run, d);
                if (lane >= d) run += other;
            }
            if (mine) spans[base + lane].end = sum + run;
            sum += __shfl_sync(~0u, run, min(31, p.max_seqs - 1 - base));
        }
        least = __reduce_min_sync(~0u, least);
        most = __reduce_max_sync(~0u, most);
        jobs = __reduce_add_sync(~0u, jobs);
        if (lane == 0) {
            attend_plan made = {sum, min(gridDim.x, sum), 0, 0, sum, 0, 0};
            /* Runs that end with jobs save a merge, but idle CTAs when jobs do not divide them evenly: at
             * most one in sixteen, and not for long; and blocks of rows read the same pages side by side. */
            const uint32_t splits = jobs ? attend_quotient(gridDim.x, jobs) : 0;
            if (least == most && splits > 0 && splits * jobs * 16 >= gridDim.x * 15 &&
                (most <= ALIGNED_UNITS * splits || rows_share_pages(p, rows))) {
                const uint32_t few = most <= FEW_RUNS * (blockDim.x / 32 - 1) ? FEW_RUNS : splits;
                made.units = most;
                made.runs = min(min(splits, few), most);
            }
            made.each = made.runs ? made.units / made.runs : 0;
            made.longer = made.units - made.each * made.runs;
            attend_take_run(&made);
            *plan = made;
        }
    }
    __syncthreads();
}

/* The run that holds a unit. */
static __device__ __forceinline__ uint32_t attend_run_of(const attend_plan &plan, uint32_t unit)
{
    uint32_t job = 0;
    if (plan.units < plan.total) {
        job = attend_quotient(unit, plan.units);
        unit -= job * plan.units;
    }
    const uint32_t long_units = plan.longer * (plan.each + 1);
    const uint32_t run = unit < long_units ? attend_quotient(unit, plan.each + 1)
                                           : plan.longer + attend_quotient(unit - long_units, plan.each);
    return job * plan.runs + run;
}

/* The segment of this CTA's run that begins at `unit`; `seq` is where to look from. */
static __device__ __forceinline__ attend_segment attend_next_segment(const attend_plan &plan,
                                                                     const attend_span *spans, int seq,
                                                                     uint32_t unit, int n_warps)
{
    attend_segment s;
    while (spans[seq].end <= unit) seq++;
    const uint32_t base = seq > 0 ? spans[seq - 1].end : 0, units = spans[seq].units;
    const uint32_t job = attend_quotient(unit - base, units);
    s.seq = seq;
    s.kv_head = (int)job;
    s.block = 0;
    if (spans[seq].blocks > 1) {
        s.kv_head = (int)attend_quotient(job, (uint32_t)spans[seq].blocks);
        s.block = (int)job - s.kv_head * spans[seq].blocks;
    }
    s.job_units = units;
    s.job_start = base + job * units;
    s.first = unit - s.job_start;
    s.end = min(units, s.first + (plan.end - unit));
    const uint32_t before = unit - plan.first;
    s.turn = (int)(before - attend_quotient(before, (uint32_t)n_warps) * (uint32_t)n_warps);
    return s;
}

/* Token of the sequence that a row of the job belongs to; n_query and more: padding. */
static __device__ __forceinline__ int attend_token_of(const attend_params &p, int block, int rows, int row)
{
    const int at = block * rows + row;
    return p.group == 1 ? at : (int)attend_quotient((uint32_t)at, (uint32_t)p.group);
}

#endif
