/* chain.cu: all dense work between two attentions in one kernel, for a decode step of one token.
 *
 * Math     x ← x + W_o a; n = norm(x); f = silu(W_g n) · (W_u n); x ← x + W_d f; n = norm(x); out = W_qkv n + bias,
 * or n itself where W_qkv is not given.
 * Layout   as kernels.h says. Shared memory: a vector of the widest matrix's columns in act, then a ring for each of 16
 * warps: pieces of 2 rows × 1024 columns (512 where that leaves too few), by bulk copies.
 * Mapping  a CTA an SM, all resident. Rows go in pairs (of gate and up the same row of both, so that silu is taken in
 * registers) round all warps of the card, from phase to phase without a new start; but o's by the order in which the CTAs
 * came, so that the last ones, on SMs that the attention left last, have none. Four phases (o, gate and up, down, qkv)
 * with a barrier of the grid between; behind it each CTA adds, norms and rounds the whole vector for itself, and writes
 * its share of x.
 * Cost     the weights, once: 436 MB a layer of Llama-3.1-8B, 94 µs at 4.64 TB/s. As seven kernels a layer paid 2 to 3 µs
 * for the ramp of each and 3 for each norm. Here a warp asks for its next piece the moment it has read one, across
 * barriers too: the ring (192 KB an SM, 5.6 µs of the card's bandwidth) is what a barrier and a norm hide behind. No more
 * than 64 KB an SM fly at a time: what a barrier and a norm load queues behind them.
 * Numerics f32 products of act values; a lane's columns in order, then 32 lanes by halving; rounding to act where the
 * separate ops round too, but for gate and up, which stay f32 until their product. The same bits run to run.
 * Limits   compute capability 9.0; one token; F16 or BF16, one type for weights and activations; columns multiples of 8,
 * rows of 2; hidden ≤ 8192; what shared memory holds (bs_cuda_dense_chain_fits). The grid must be resident as a whole:
 * nothing else may hold an SM for ever. Why one token: of more, gemv.cu has x from the L2 once for a block of rows and
 * multiplies on tensor cores; a chain of T tokens read T vectors from shared memory for every pair of rows, and multiplied
 * in f32 (docs/adr/0010).
 * Measured 2026-11-29, one H200, bf16, 8B's layer in a decode step: 107 µs behind the attention's end, 4.1 TB/s of
 * 4.5. Gate, up and down run at the speed of memory; what is lost is 14 µs from the attention's end to gate and up, and a
 * few at the last norm. What was tried: docs/perf/LOG.md. */
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum {
    WARP = 32,
    WARPS = 16,
    THREADS = WARP * WARPS,
    WIDE_COLS = 1024,
    NARROW_COLS = 512, /* of a piece */
    MIN_SLOTS = 3,
    MAX_SLOTS = 8,
    KEPT = 4,      /* chunks of 4 elements of the residual that a thread keeps in a norm */
    N_LATE = 12,   /* CTAs that come last: they ask for all at once, and do not wait for it */
    GRID_WAITS = 3 /* of a launch */
};

enum phase_number { O_PROJ, GATE_UP, DOWN, QKV, PHASES };

enum phase_kind { TO_SUM, TO_FFN, TO_OUT };

/* Places in args.counter. */
enum { GRID, TICKETS };

/* Pair i: the rows at w + i · pair_step and `second` behind it. */
typedef struct phase {
    const uint8_t *w;
    int64_t pair_step, second;
    int n_pairs, n_cols, n_pieces; /* pieces a pair */
    int n_flying;                  /* pieces that a warp may have asked for and not got */
    phase_kind kind;
} phase;

typedef struct job {
    phase phases[PHASES];
    int n_phases, n_slots, x_bytes; /* x_bytes: of the vector in shared memory */
    bs_dense_chain_args args;
} job;

/* Where a warp is in its row of pairs and pieces. The same in all lanes. */
typedef struct cursor {
    int phase, pair, piece;
} cursor;

/* A warp's ring: `lead` pieces have been asked for and not read, from `slot` on. The same in all lanes. */
typedef struct ring {
    uint32_t data, full; /* shared addresses of slot 0 and of its barrier */
    uint64_t policy;
    int slot, lead;
    uint32_t parity; /* of slot's barrier */
    cursor next;     /* the piece to ask for next */
    int order;       /* of this CTA: how many came before it */
} ring;

/* This warp's first pair of a phase. */
static __device__ __forceinline__ int first_pair(const job &j, int phase_number, int order)
{
    const int warp = threadIdx.x / WARP, n_warps = (int)gridDim.x * WARPS;
    if (phase_number == O_PROJ) return order * WARPS + warp;
    int before = 0;
    for (int i = GATE_UP; i < phase_number; i++) before += j.phases[i].n_pairs;
    return (warp * (int)gridDim.x + (int)blockIdx.x + n_warps - before % n_warps) % n_warps;
}

/* On to a pair that exists; phase n_phases is the end. */
static __device__ __forceinline__ void settle(const job &j, cursor &c, int order)
{
    while (c.phase < j.n_phases && c.pair >= j.phases[c.phase].n_pairs) {
        c.phase++;
        c.pair = c.phase < j.n_phases ? first_pair(j, c.phase, order) : 0;
    }
}

/* Asks for the next piece, which exists, and for which there is room. */
template <int COLS> static __device__ __forceinline__ void ask(const job &j, ring &r)
{
    const int at = r.slot + r.lead, s = at < j.n_slots ? at : at - j.n_slots;
    const phase &p = j.phases[r.next.phase];
    if (threadIdx.x % WARP == 0) {
        const int cols = min(COLS, p.n_cols - r.next.piece * COLS);
        const uint8_t *from = p.w + r.next.pair * p.pair_step + r.next.piece * (2 * COLS);
        const uint32_t to = r.data + s * 4 * COLS, full = r.full + 8 * s;
        barrier_expect(full, 4 * (uint32_t)cols);
        bulk_load(to, from, 2 * (uint32_t)cols, full, r.policy);
        bulk_load(to + 2 * COLS, from + p.second, 2 * (uint32_t)cols, full, r.policy);
    }
    r.lead++;
    if (++r.next.piece < p.n_pieces) return;
    r.next.piece = 0;
    r.next.pair += (int)gridDim.x * WARPS;
    settle(j, r.next, r.order);
}

/* Asks for what there is room for and may fly. */
template <int COLS> static __device__ __forceinline__ void pump(const job &j, ring &r, int n_flying)
{
    while (r.lead < j.n_slots && r.next.phase < j.n_phases) {
        if (r.lead >= n_flying) { /* has the piece come that is so far behind? */
            const int at = r.slot + r.lead - n_flying, s = at < j.n_slots ? at : at - j.n_slots;
            const uint32_t parity = at < j.n_slots ? r.parity : r.parity ^ 1;
            if (!__all_sync(0xffffffffu, barrier_passed(r.full + 8 * s, parity))) return;
        }
        ask<COLS>(j, r);
    }
}

template <bool BF16> static __device__ __forceinline__ float2 widen(uint32_t two)
{
    if constexpr (BF16) return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
    else return __half22float2(half2_of(two));
}

/* sums += 2 rows' columns of this piece times x; the lane takes 8 columns of every 256. */
template <bool BF16, int COLS>
static __device__ __forceinline__ void multiply(float sums[2], uint32_t slot, uint32_t x, int cols)
{
#pragma unroll
    for (int i = 0; i < COLS / (8 * WARP); i++) {
        const int col = 8 * (WARP * i + (int)threadIdx.x % WARP);
        if (col >= cols) break;
        const uint4 a = load_shared(slot + 2 * col), b = load_shared(slot + 2 * COLS + 2 * col),
                    v = load_shared(x + 2 * col);
        const uint32_t wa[4] = {a.x, a.y, a.z, a.w}, wb[4] = {b.x, b.y, b.z, b.w},
                       xs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float2 f = widen<BF16>(xs[k]), g = widen<BF16>(wa[k]), h = widen<BF16>(wb[k]);
            sums[0] = fmaf(g.y, f.y, fmaf(g.x, f.x, sums[0]));
            sums[1] = fmaf(h.y, f.y, fmaf(h.x, f.x, sums[1]));
        }
    }
}

/* By one lane: what the pair's sums are for. */
static __device__ __forceinline__ void store_pair(const job &j, const phase &p, int pair, float first,
                                                  float second)
{
    const bs_dense_chain_args &a = j.args;
    if (p.kind == TO_SUM) {
        *(float2 *)(a.sum + 2 * pair) = make_float2(first, second);
    } else if (p.kind == TO_FFN) {
        bs_cuda_store_act(a.ffn, pair, a.act, bs_cuda_silu(first) * second);
    } else {
        const float *bias = a.qkv_bias ? a.qkv_bias + 2 * pair : nullptr;
        bs_cuda_store_act(a.out, 2 * pair, a.out_type, first + (bias ? bias[0] : 0));
        bs_cuda_store_act(a.out, 2 * pair + 1, a.out_type, second + (bias ? bias[1] : 0));
    }
}

/* ---- waiting for others ------------------------------------------------------------------------------------ */

static __device__ __forceinline__ uint64_t load_acquire(const uint64_t *counter)
{
    uint64_t seen;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(counter) : "memory");
    return seen;
}

static __device__ __forceinline__ void add_release(uint64_t *counter)
{
    asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(counter) : "memory");
}

/* All CTAs have come here, for the turn-th time of all launches, and what each wrote before is seen by all behind it. Rings
 * fill meanwhile. `opened`: a barrier of one arrival, and its parity. */
template <int COLS>
static __device__ __forceinline__ void wait_for_grid(const job &j, ring &r, int n_flying, uint64_t turn,
                                                     uint32_t opened, uint32_t parity)
{
    __syncthreads();
    if (threadIdx.x == 0) add_release(j.args.counter + GRID);
    if (threadIdx.x < WARP) {
        for (bool come = false; !come;) {
            if (threadIdx.x == 0) come = load_acquire(j.args.counter + GRID) >= turn * gridDim.x;
            come = __shfl_sync(0xffffffffu, come, 0);
            pump<COLS>(j, r, n_flying);
        }
        if (threadIdx.x == 0) barrier_arrive(opened);
    } else {
        while (!__all_sync(0xffffffffu, barrier_passed(opened, parity))) pump<COLS>(j, r, n_flying);
    }
    __syncthreads();
}

/* ---- a vector, into shared memory ------------------------------------------------------------------------ */

/* n act values, a multiple of 8, that another SM has written. */
static __device__ void load_vector(const void *from, int64_t n, uint8_t *x)
{
    for (int i = threadIdx.x; i < (int)(n / 8); i += THREADS)
        ((uint4 *)x)[i] = __ldcg((const uint4 *)from + i);
}

/* The sum over the CTA of each thread's value. */
static __device__ __forceinline__ float sum_cta(float value)
{
    __shared__ float sums[WARPS];
    value = bs_cuda_sum_warp(value);
    __syncthreads(); /* the sums before have been read */
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    float all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all += sums[w];
    return all;
}

/* to = from + sum, this CTA's share of it; the norm of all of it to x in shared memory, and this CTA's share of that to
 * `normed` where it is given. */
static __device__ void load_normed(const job &j, const float *from, float *to, const float *gain, uint8_t *x,
                                   void *normed)
{
    const bs_dense_chain_args &a = j.args;
    const int n = (int)(a.n_hidden / 4);
    float4 kept[KEPT], gains[KEPT];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= n) break;
        gains[k] = ((const float4 *)gain)[i]; /* on its way with the others */
        const float4 r = __ldcg((const float4 *)from + i), s = __ldcg((const float4 *)a.sum + i);
        kept[k] = make_float4(r.x + s.x, r.y + s.y, r.z + s.z, r.w + s.w);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= n) break;
        const float4 v = kept[k];
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        if (i % (int)gridDim.x == (int)blockIdx.x) ((float4 *)to)[i] = v;
    }
    const float scale = 1 / sqrtf(sum_cta(squares) / (float)a.n_hidden + a.eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= n) break;
        const float4 v = kept[k], g = gains[k];
        alignas(8) uint16_t y[4];
        bs_cuda_store_act(y, 0, a.act, v.x * scale * g.x);
        bs_cuda_store_act(y, 1, a.act, v.y * scale * g.y);
        bs_cuda_store_act(y, 2, a.act, v.z * scale * g.z);
        bs_cuda_store_act(y, 3, a.act, v.w * scale * g.w);
        ((uint2 *)x)[i] = *(const uint2 *)y;
        if (normed && i % (int)gridDim.x == (int)blockIdx.x) ((uint2 *)normed)[i] = *(const uint2 *)y;
    }
}

/* ---- the kernel ------------------------------------------------------------------------------------------ */

template <bool BF16, int COLS>
static __global__ void __launch_bounds__(THREADS, 1) chain_kernel(const __grid_constant__ job j)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* bs_cuda_dense_chain_fits says no elsewhere */
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(8) uint64_t barriers[WARPS * MAX_SLOTS], opened;
    __shared__ uint64_t ticket;
    const int warp = threadIdx.x / WARP;
    const uint32_t x = smem_address(shared);
    ring r = {};
    r.data = x + j.x_bytes + warp * j.n_slots * 4 * COLS;
    r.full = smem_address(&barriers[warp * MAX_SLOTS]);
    r.policy = evict_first_policy();
    if (threadIdx.x == 0) { /* before the wait: nobody else knows this counter */
        ticket = atomicAdd((unsigned long long *)j.args.counter + TICKETS, 1ull);
        barrier_init(smem_address(&opened), 1);
    }
    if (threadIdx.x % WARP == 0)
        for (int s = 0; s < j.n_slots; s++) barrier_init(r.full + 8 * s, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    uint64_t turn = ticket / gridDim.x * GRID_WAITS;
    r.order = (int)(ticket % gridDim.x);
    r.next = {O_PROJ, first_pair(j, O_PROJ, r.order), 0};
    settle(j, r.next, r.order);
    /* Slowly: the attention is still at work on other SMs. It has gone when the last CTAs come, and they are waited for. */
    const bool late = r.order >= (int)gridDim.x - N_LATE;
    do pump<COLS>(j, r, late ? MAX_SLOTS : 1);
    while (r.lead < j.n_slots && r.next.phase < j.n_phases && !late);
    bs_cuda_release_next();
    bs_cuda_wait_before();

    if (r.order * WARPS < j.phases[O_PROJ].n_pairs)
        load_vector(j.args.attended, j.phases[O_PROJ].n_cols, shared);
    pump<COLS>(j, r, late ? MAX_SLOTS : j.phases[O_PROJ].n_flying);
    __syncthreads();
    for (int number = O_PROJ; number < j.n_phases; number++) {
        const phase &p = j.phases[number];
        if (number == GATE_UP) load_normed(j, j.args.x, j.args.x_other, j.args.ffn_gain, shared, nullptr);
        if (number == DOWN) load_vector(j.args.ffn, j.args.n_ffn, shared);
        if (number == QKV) load_normed(j, j.args.x_other, j.args.x, j.args.next_gain, shared, nullptr);
        if (number > O_PROJ) __syncthreads();
        for (int pair = first_pair(j, number, r.order); pair < p.n_pairs; pair += (int)gridDim.x * WARPS) {
            float sums[2] = {};
            for (int piece = 0; piece < p.n_pieces; piece++) {
                const int col = COLS * piece;
                barrier_wait(r.full + 8 * r.slot, r.parity);
                multiply<BF16, COLS>(sums, r.data + r.slot * 4 * COLS, x + 2 * col, p.n_cols - col);
                __syncwarp();
                r.lead--;
                if (++r.slot == j.n_slots) {
                    r.slot = 0;
                    r.parity ^= 1;
                }
                pump<COLS>(j, r, p.n_flying);
            }
            const float first = bs_cuda_sum_warp(sums[0]), second = bs_cuda_sum_warp(sums[1]);
            if (threadIdx.x % WARP == 0) store_pair(j, p, pair, first, second);
        }
        if (number < QKV) wait_for_grid<COLS>(j, r, p.n_flying, ++turn, smem_address(&opened), number & 1);
    }
    if (j.n_phases < PHASES) load_normed(j, j.args.x_other, j.args.x, j.args.next_gain, shared, j.args.out);
#endif
}

/* ---- launching ------------------------------------------------------------------------------------------- */

typedef struct room {
    int cols, n_slots, x_bytes;
} room;

/* Shared memory that a CTA may ask for beside what is static; 0 where this is not a card for it. */
static bs_status find_limits(int *shared_bytes, int *n_sms)
{
    int major;
    BS_TRY(bs_cuda_attribute(cudaDevAttrComputeCapabilityMajor, "dense_chain", &major));
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "dense_chain", n_sms));
    BS_TRY(bs_cuda_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, "dense_chain", shared_bytes));
    *shared_bytes = major == 9 ? *shared_bytes - 2048 : 0;
    return BS_STATUS_OK;
}

static int64_t align_128(int64_t n)
{
    return (n + 127) / 128 * 128;
}

/* How shared memory is shared out; no slots: there is too little. */
static room share_out(int shared_bytes, int64_t n_attended, int64_t n_hidden, int64_t n_ffn)
{
    room m = {};
    int64_t widest = n_ffn > n_hidden ? n_ffn : n_hidden;
    if (n_attended > widest) widest = n_attended;
    m.x_bytes = (int)align_128(2 * widest);
    for (int cols = WIDE_COLS; cols >= NARROW_COLS; cols /= 2) {
        const int64_t n = (shared_bytes - m.x_bytes) / (WARPS * 4 * cols);
        m.cols = cols;
        m.n_slots = n > MAX_SLOTS ? MAX_SLOTS : n < MIN_SLOTS ? 0 : (int)n;
        if (m.n_slots > 0) break;
    }
    return m;
}

bool bs_cuda_dense_chain_fits(const bs_device *, int64_t n_attended, int64_t n_hidden, int64_t n_ffn,
                              bs_type act)
{
    int shared_bytes, n_sms;
    if (find_limits(&shared_bytes, &n_sms) != BS_STATUS_OK) return false;
    return (act == BS_TYPE_F16 || act == BS_TYPE_BF16) && (n_attended | n_hidden | n_ffn) % 8 == 0 &&
           n_hidden <= 4 * KEPT * THREADS && n_attended > 0 && n_ffn > 0 &&
           share_out(shared_bytes, n_attended, n_hidden, n_ffn).n_slots > 0;
}

static phase make_phase(const bs_weight *w, int number, int cols)
{
    static const phase_kind kinds[PHASES] = {TO_SUM, TO_FFN, TO_SUM, TO_OUT};
    phase p = {};
    const bool halves = number == GATE_UP;
    p.w = (const uint8_t *)bs_cuda_weight_data(w);
    p.pair_step = (halves ? 1 : 2) * (int64_t)w->row_bytes;
    p.second = (halves ? w->n_rows / 2 : 1) * (int64_t)w->row_bytes;
    p.n_pairs = (int)(w->n_rows / 2);
    p.n_cols = (int)w->n_cols;
    p.n_pieces = (p.n_cols + cols - 1) / cols;
    p.n_flying = WIDE_COLS / cols * (number == QKV ? 2 : 1); /* nothing waits behind qkv */
    p.kind = kinds[number];
    return p;
}

bs_status bs_cuda_dense_chain(bs_stream *stream, const bs_dense_chain_args *args)
{
    static void (*const kernels[2][2])(job) = {
        {chain_kernel<false, NARROW_COLS>, chain_kernel<false, WIDE_COLS>},
        {chain_kernel<true, NARROW_COLS>, chain_kernel<true, WIDE_COLS>}};
    int shared_bytes, n_sms;
    BS_TRY(find_limits(&shared_bytes, &n_sms));
    const room m = share_out(shared_bytes, args->o->n_cols, args->n_hidden, args->n_ffn);
    const bs_weight *weights[PHASES] = {args->o, args->gate_up, args->down, args->qkv};
    job j = {};
    j.args = *args;
    for (int i = 0; i < PHASES && weights[i]; i++) {
        const bs_weight *w = weights[i];
        if (w->type != args->act || w->n_rows % 2 || w->n_cols % 8 || w->row_bytes % 16 ||
            (uintptr_t)bs_cuda_weight_data(w) % 16)
            return bs_fail(BS_STATUS_UNSUPPORTED, "dense_chain: matrix %d, %s, %lld × %lld", i,
                           bs_type_name(w->type), (long long)w->n_rows, (long long)w->n_cols);
        j.phases[j.n_phases++] = make_phase(w, i, m.cols);
    }
    j.x_bytes = m.x_bytes;
    j.n_slots = m.n_slots;
    const size_t bytes = (size_t)j.x_bytes + (size_t)j.n_slots * WARPS * 4 * (size_t)m.cols;
    void (*kernel)(job) = kernels[args->act == BS_TYPE_BF16][m.cols == WIDE_COLS];
    BS_TRY(
        bs_cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                       "dense_chain"));
    return bs_cuda_launch(stream, "dense_chain", kernel, dim3((unsigned)n_sms), dim3(THREADS), bytes, j);
}
