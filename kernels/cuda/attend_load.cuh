/* attend_load.cuh: the CTA's dispatcher: one warp that says what the others load, and brings them q.
 *
 * Lane w of it walks through warp w's units, segment after segment, turns list entries into addresses, and
 * leaves them in that warp's queue in shared memory; the warp itself issues the two bulk copies of a unit, the
 * moment a slot of its ring falls free. So nothing of this stands in the registers or in the way of the
 * arithmetic, and the ring runs on into the next segment. Rejected: every warp for itself, whose cursor cost
 * 20 registers and whose ring ran dry at the end of a segment; copies issued by the dispatcher, which sees a
 * free slot only when it polls.
 */
#ifndef BS_CUDA_ATTEND_LOAD_CUH
#define BS_CUDA_ATTEND_LOAD_CUH

#include "kernels/cuda/attend_rows.cuh"
#include "kernels/cuda/overlap.h"

/* EDGE: a quantized page that not every row sees whole. END: no more units. */
enum { UNIT_END = 0, UNIT_F16 = 1, UNIT_QUANT = 2, UNIT_EDGE = 3 };

/* A unit in a warp's queue. */
struct alignas(16) attend_entry {
    const uint8_t *from; /* its K half */
    int32_t position;    /* global position of its first token */
    uint32_t tag;        /* kind, and 4 × the segments of this warp that end before it */
};

/* A warp's queue, filled by the dispatcher's lane and emptied by the warp. */
enum { ATTEND_QUEUE = 8 };
typedef struct attend_queue {
    attend_entry entries[ATTEND_QUEUE];
    uint64_t there[ATTEND_QUEUE]; /* barriers: the entry has been written, */
    uint64_t read[ATTEND_QUEUE];  /* and read: it may be written again */
} attend_queue;

/* What a warp must know to merge a row of a segment. */
typedef struct attend_merging {
    uint32_t run0, n; /* first of the job's runs, and how many */
    int job;
    bool whole; /* this CTA has the whole job */
} attend_merging;

/* q_start0: of the first sequence; a call's counters begin there. */
static __device__ __forceinline__ attend_merging attend_plan_merge(const attend_params &p,
                                                                   const attend_plan &plan, int q_start0,
                                                                   const attend_span &span,
                                                                   const attend_segment &segment, int rows)
{
    attend_merging m = {0, 1, 0, segment.first == 0 && segment.end == segment.job_units};
    if (m.whole) return m;
    m.run0 = attend_run_of(plan, segment.job_start);
    m.n = attend_run_of(plan, segment.job_start + segment.job_units - 1) - m.run0 + 1;
    m.job = ((span.q_start - q_start0) * p.group / rows + segment.seq + segment.block) * p.layout.n_kv_heads +
            segment.kv_head;
    return m;
}

/* What the dispatcher shares with the warps: q and the segment it belongs to, two and four deep. Segment n
 * may be read from its q_there on until the next one's states have been left. */
template <int D, int R> struct alignas(128) attend_jobs {
    __half q[2][R * D]; /* of an even and of an odd segment (attend_q_at) */
    uint4 factors[2][R == 4 ? 2 : 4]
                 [32]; /* K per token: q as split_q makes it, for all pages; lane by lane */
    float units[2][32];
    uint8_t staging[attend_staging_bytes(D)];
    float gains[2][R];
    attend_segment segments[4];
    attend_merging merging[4]; /* how their rows are merged */
    uint64_t q_there[2];       /* barriers: q of an even, of an odd segment has been left; */
    uint64_t states_there[2];  /* all warps have left their states of an even, of an odd segment: two, because
                                * the dispatcher may see a segment's only when the next one's are there too; */
    uint64_t states_read;      /* all rows have been merged from them */
};

/* Unit → entry of the page list, −1 for a unit that stands for nothing. */
static __device__ __forceinline__ int attend_entry_of(const attend_params &p, const attend_span &span,
                                                      uint32_t unit, bool *quant, uint32_t *slice)
{
    const int slices = 7 - p.slice_log2;
    const uint32_t sink = (uint32_t)span.n[0] << slices;
    *quant = unit >= sink && unit - sink < (uint32_t)span.n[1];
    const uint32_t u = unit < sink ? unit : unit - sink - (*quant ? 0 : (uint32_t)span.n[1]);
    *slice = *quant ? 0 : u & ((1u << slices) - 1);
    const uint32_t entry = *quant ? u : u >> slices;
    const int part = unit < sink ? 0 : *quant ? 1 : 2;
    if (entry >= (uint32_t)span.n[part]) return -1;
    return span.first[part] + (int)entry;
}

/* A lane's walk through its warp's units. */
typedef struct attend_cursor {
    attend_segment segment;
    uint32_t unit; /* of the job: the next one */
    uint32_t ends; /* segments that end before it */
    uint32_t pushed;
    bool over, finished; /* no unit is left; and the queue has been told so */
    bool quant;
    uint32_t slice, slot;
    int32_t index;          /* of the unit's list entry, on its way; −1: it stands for nothing */
    int32_t all_lo, all_hi; /* positions that every row of the segment sees */
} attend_cursor;

/* First unit of a segment that is a warp's: a CTA's units go round its warps, whatever segment they are in. */
static __device__ __forceinline__ uint32_t attend_first_of(const attend_segment &s, int warp, int n_warps)
{
    const int at = warp - s.turn;
    return s.first + (uint32_t)(at < 0 ? at + n_warps : at);
}

/* Finds the lane's next unit and fetches its list entry. */
template <int R>
static __device__ __forceinline__ void attend_seek(attend_cursor &c, const attend_params &p,
                                                   const attend_plan &plan, const attend_span *spans,
                                                   int warp, int n_warps)
{
    bool fresh = c.pushed == 0;
    while (!c.over && c.unit >= c.segment.end) {
        c.ends++;
        const uint32_t next = c.segment.job_start + c.segment.end;
        c.over = next >= plan.end;
        if (c.over) break;
        c.segment = attend_next_segment(plan, spans, c.segment.seq, next, n_warps);
        c.unit = attend_first_of(c.segment, warp, n_warps);
        fresh = true;
    }
    if (c.over) return;
    const attend_span &span = spans[c.segment.seq];
    const int entry = attend_entry_of(p, span, c.unit, &c.quant, &c.slice);
    c.index = entry < 0 ? -1 : p.page_index[entry];
    c.slot = entry < 0 ? 0 : p.page_slot[entry];
    if (fresh) { /* from the last row's window to the first row, while the entry is on its way */
        const int last = attend_token_of(p, c.segment.block, R, R - 1);
        c.all_lo = p.window > 0 ? max(0, span.pos0 + last - p.window + 1) : 0;
        c.all_hi = min(span.n_seen, span.pos0 + attend_token_of(p, c.segment.block, R, 0) + 1);
    }
}

/* The fetched unit into the queue, unless it stands for nothing that anybody sees. */
static __device__ __forceinline__ void attend_push(attend_cursor &c, attend_queue &queue,
                                                   const attend_params &p, const attend_span *spans)
{
    attend_entry e;
    e.from = nullptr;
    e.position = 0;
    e.tag = UNIT_END;
    if (!c.over) {
        const attend_span &span = spans[c.segment.seq];
        e.position = c.index * BS_PAGE_TOKENS + (int)(c.slice << p.slice_log2);
        if (c.quant) {
            e.tag = e.position < c.all_lo || e.position + BS_PAGE_TOKENS > c.all_hi ? UNIT_EDGE : UNIT_QUANT;
            e.from = p.quant_pool + c.slot * p.layout.quant_slot +
                     (size_t)c.segment.kv_head * p.layout.record;
        } else {
            if (c.index < 0 || e.position >= span.n_seen) return;
            e.tag = UNIT_F16;
            e.from = p.f16_pool + c.slot * p.layout.f16_slot +
                     (size_t)c.segment.kv_head * 2 * p.layout.f16_page +
                     ((c.slice << p.slice_log2) * 2 * (uint32_t)p.layout.head_dim);
        }
    }
    e.tag |= c.ends << 2;
    c.ends = 0;
    c.finished = c.over;
    const uint32_t at = c.pushed++ % ATTEND_QUEUE;
    queue.entries[at] = e;
    barrier_arrive(smem_address(&queue.there[at]));
}

/* The dispatcher, from the plan to the last unit. */
template <int D, int R>
static __device__ __forceinline__ void attend_dispatch(const attend_params &p, const attend_plan &plan,
                                                       const attend_span *spans, attend_queue *queues,
                                                       attend_jobs<D, R> &jobs, int n_warps)
{
    const int lane = threadIdx.x & 31;
    const uint32_t staging = smem_address(jobs.staging);
    attend_segment job = attend_next_segment(plan, spans, 0, plan.first, n_warps);
    attend_cursor c = {};
    c.segment = job;
    c.finished = lane >= n_warps;
    c.unit = attend_first_of(job, lane, n_warps);
    if (!c.finished) attend_seek<R>(c, p, plan, spans, lane, n_warps);
    if (!p.overlap) attend_copy_q<D, R>(staging, p, spans[job.seq], job);
    if (!c.finished) attend_push(c, queues[lane], p, spans);
    __syncwarp();
    if (p.overlap) {
        bs_cuda_wait_before();
        bs_cuda_release_next();
        attend_copy_q<D, R>(staging, p, spans[job.seq], job);
    }
    /* q of segment n may be left when all warps have done with segment n − 2. */
    for (int number = 0; number >= 0 || !__all_sync(~0u, c.finished);) {
        bool busy = false;
        if (number >= 0 && (number < 2 || barrier_passed(smem_address(&jobs.states_there[number & 1]),
                                                         (number >> 1 & 1) ^ 1))) {
            attend_put_q<D, R>(staging, p, smem_address(jobs.q[number & 1]), jobs.gains[number & 1]);
            const attend_merging merging = attend_plan_merge(p, plan, spans[0].q_start, spans[job.seq], job,
                                                             R);
            if (p.layout.k_bits != 16 && !p.layout.k_per_channel) {
                __syncwarp();
                attend_put_factors<D, R>(smem_address(jobs.q[number & 1]), jobs.factors[number & 1],
                                         jobs.units[number & 1]);
            }
            if (lane == 0) {
                jobs.segments[number & 3] = job;
                jobs.merging[number & 3] = merging;
            }
            barrier_arrive(smem_address(&jobs.q_there[number & 1]));
            const uint32_t next = job.job_start + job.end;
            number = next < plan.end ? number + 1 : -1;
            if (number >= 0) {
                job = attend_next_segment(plan, spans, job.seq, next, n_warps);
                attend_copy_q<D, R>(staging, p, spans[job.seq], job);
            }
            busy = true;
        }
        if (!c.finished &&
            barrier_passed(smem_address(&queues[lane].read[c.pushed % ATTEND_QUEUE]),
                           (c.pushed / ATTEND_QUEUE & 1) ^ 1)) { /* a fresh barrier has passed 1 */
            if (c.unit < c.segment.end) c.unit += (uint32_t)n_warps;
            attend_seek<R>(c, p, plan, spans, lane, n_warps);
            attend_push(c, queues[lane], p, spans);
            busy = true;
        }
        if (!__any_sync(~0u, busy)) __nanosleep(100);
    }
}

/* ---- the other side ---- */

/* A warp's ring and its place in the queue. */
typedef struct attend_ring {
    uint32_t queue; /* shared addresses: of the queue, */
    uint32_t k;     /* of the slot of the K half; that of the V half follows, */
    uint32_t there; /* and of their two barriers */
    uint32_t taken;
} attend_ring;

/* The next entry of the warp's queue. Its first lane alone reads there, and knows where the unit lies. */
static __device__ __forceinline__ attend_entry attend_take(attend_ring &ring)
{
    const uint32_t at = ring.taken % ATTEND_QUEUE;
    uint4 raw = make_uint4(0, 0, 0, 0);
    barrier_wait(ring.queue + (uint32_t)offsetof(attend_queue, there) + 8 * at,
                 ring.taken / ATTEND_QUEUE & 1);
    if ((threadIdx.x & 31) == 0) {
        raw = load_shared(ring.queue + (uint32_t)sizeof(attend_entry) * at);
        barrier_arrive(ring.queue + (uint32_t)offsetof(attend_queue, read) + 8 * at);
    }
    attend_entry e;
    e.from = reinterpret_cast<const uint8_t *>((uint64_t)raw.y << 32 | raw.x);
    e.position = __shfl_sync(~0u, (int32_t)raw.z, 0);
    e.tag = __shfl_sync(~0u, raw.w, 0);
    ring.taken++;
    __syncwarp(); /* what lanes have read of the slot that is asked for next */
    return e;
}

/* Asks for one half of a unit; the slot has been read by the whole warp. */
template <int R>
static __device__ __forceinline__ void attend_ask(const attend_ring &ring, const attend_entry &e,
                                                  const attend_params &p, bool v_half)
{
    const uint32_t kind = e.tag & 3;
    if (kind == UNIT_END || (threadIdx.x & 31) != 0) return;
    uint32_t bytes = v_half ? p.layout.v_half : p.layout.k_half, v_at = p.layout.k_half;
    if (kind == UNIT_F16) {
        bytes = (uint32_t)p.layout.head_dim * 2 << p.slice_log2;
        v_at = p.layout.f16_page;
    }
    const uint32_t barrier = ring.there + (v_half ? 8 : 0);
    barrier_expect(barrier, bytes);
    bulk_load(v_half ? ring.k + p.stage_bytes : ring.k, e.from + (v_half ? v_at : 0), bytes, barrier,
              rows_share_pages(p, R) ? evict_normal_policy() : evict_first_policy());
}

#endif
