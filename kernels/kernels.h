/* kernels.h: the device seam. What the engine, the cache and the service may ask of a device, without a CUDA type.
 *
 * A device is a CPU rank's cores or one GPU. The same ops exist for both: kernels/cpu/<op>.c is the reference and
 * its SIMD, kernels/cuda/<op>.cu the GPU. Callers are the same lines for either.
 *
 * Rules of every op (bs_op_…):
 *  - It takes one arguments struct. Pointers marked [device] are device addresses (bs_buffer_at, or a weight placed
 *    by bs_device_map_weight); everything else is host memory. Shapes are row-major, last index fastest.
 *  - It checks its arguments, queues its work on the stream and returns; it allocates nothing and never
 *    synchronises, so it can be captured in a CUDA graph. On a CPU the work is done when it returns.
 *  - It returns BS_STATUS_RANGE for a bad argument and BS_STATUS_UNSUPPORTED for what this build lacks, with one
 *    line. Numbers that go wrong on the device (NaN in K, V or a logit) are found by bs_stream_check.
 *  - Not collective. One stream and one thread of control a rank.
 *
 * Shape letters: B sequences, T query tokens of a step (all sequences together), S cached tokens, H query heads,
 * G query heads a KV head, K KV heads, D head size, L layers, P pages. H and K are this rank's.
 */
#ifndef BS_KERNELS_H
#define BS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "src/base/half.h"
#include "src/base/status.h"

/* ---- element types ---------------------------------------------------------------------------------------- */

/* X(name, GGUF's number, elements a block, bytes a block). Weights stay in these blocks. */
#define BS_TYPE_LIST(X)                                                                                      \
    X(F32, 0, 1, 4)                                                                                          \
    X(F16, 1, 1, 2)                                                                                          \
    X(Q4_0, 2, 32, 18)                                                                                       \
    X(Q4_1, 3, 32, 20)                                                                                       \
    X(Q5_0, 6, 32, 22)                                                                                       \
    X(Q5_1, 7, 32, 24)                                                                                       \
    X(Q8_0, 8, 32, 34)                                                                                       \
    X(Q2_K, 10, 256, 84)                                                                                     \
    X(Q3_K, 11, 256, 110)                                                                                    \
    X(Q4_K, 12, 256, 144)                                                                                    \
    X(Q5_K, 13, 256, 176)                                                                                    \
    X(Q6_K, 14, 256, 210)                                                                                    \
    X(BF16, 30, 1, 2)                                                                                        \
    X(MXFP4, 39, 32, 17)

typedef enum bs_type {
#define X(name, gguf, elements, bytes) BS_TYPE_##name,
    BS_TYPE_LIST(X)
#undef X
        BS_TYPE_COUNT
} bs_type;

const char *bs_type_name(bs_type type); /* "Q4_1" */
int bs_type_block(bs_type type);        /* elements a block */
int bs_type_block_bytes(bs_type type);  /* bytes a block */

/* ---- devices, streams, buffers ---------------------------------------------------------------------------- */

typedef struct bs_device bs_device;
typedef struct bs_stream bs_stream;
typedef struct bs_buffer bs_buffer;

typedef enum bs_device_kind { BS_DEVICE_CPU, BS_DEVICE_CUDA } bs_device_kind;
typedef enum bs_isa { BS_ISA_AUTO, BS_ISA_SCALAR, BS_ISA_AVX2, BS_ISA_AVX512 } bs_isa;

typedef struct bs_device_config {
    bs_device_kind kind;
    int ordinal;   /* CUDA device number; 0 on a CPU */
    int n_threads; /* CPU threads of this rank, ≥ 1 */
    /* CPU instruction set; AUTO takes the best this machine has, another is an error if it lacks it */
    bs_isa isa;
    size_t memory_cap; /* most bytes that buffers may have together; 0: what there is */
} bs_device_config;

typedef struct bs_device_info {
    bs_device_kind kind;
    char name[128];      /* "AMD EPYC…, avx512, 1 thread" or the GPU's name */
    bs_isa isa;          /* CPU only */
    int n_threads;       /* CPU only */
    bs_type act_type;    /* of activations: F32 on a CPU */
    size_t memory_bytes; /* physical memory of the machine or the GPU */
    size_t memory_cap;   /* of the configuration; 0: none */
    uint8_t uuid[16];    /* of the GPU, the same in every process; zeros on a CPU */
} bs_device_info;

bs_status bs_device_open(const bs_device_config *config, bs_device **out);
/* All its streams and buffers must be gone. NULL is fine. */
void bs_device_close(bs_device *device);
const bs_device_info *bs_device_get_info(const bs_device *device);
/* A thread other than the one that opened it calls this before it uses the device; then streams of its own are its to
 * use, one thread a stream. Nothing to do on a CPU. */
bs_status bs_device_enter(bs_device *device);
/* GPUs in this machine that this process sees; 0 in a build without CUDA. */
int bs_device_count_gpus(void);

bs_status bs_stream_create(bs_device *device, bs_stream **out);
/* For work beside the steps (snapshots): a GPU begins it only where no other stream's kernel waits for an SM. On a CPU as
 * bs_stream_create. */
bs_status bs_stream_create_background(bs_device *device, bs_stream **out);
void bs_stream_destroy(bs_stream *stream);
bs_device *bs_stream_device(const bs_stream *stream);
/* The backend's own: the cudaStream_t of a GPU, NULL on a CPU. For comm/nccl.c alone. */
void *bs_stream_native(const bs_stream *stream);
/* Waits for everything queued. */
bs_status bs_stream_sync(bs_stream *stream);
/* Waits, then reports BS_STATUS_NUMERIC, and where, if since the last call a quantize or append met NaN or infinity,
 * or on a GPU candidates a NaN or sample an empty row. The engine calls it once a step. */
bs_status bs_stream_check(bs_stream *stream);
/* The same without waiting: what is known by now. For a step whose end has been seen by other means (a timer). */
bs_status bs_stream_fault(bs_stream *stream);

/* Zeroed device memory, 4096-byte aligned. `what` names it in the memory plan and in errors ("quantized pool").
 * BS_STATUS_NOMEM, with what was asked for and what is left, when there is no more or memory_cap would be exceeded. */
bs_status bs_buffer_alloc(bs_device *device, size_t bytes, const char *what, bs_buffer **out);
void bs_buffer_free(bs_buffer *buffer);
size_t bs_buffer_bytes(const bs_buffer *buffer);
/* Device address of a byte of the buffer; arithmetic on it is legal, reading it on the host is not (CUDA). */
void *bs_buffer_at(const bs_buffer *buffer, size_t offset);
/* How many bytes and allocations this device has given since it was opened. Tests compare them around a decode. */
size_t bs_device_allocated_bytes(const bs_device *device);
uint64_t bs_device_allocation_count(const bs_device *device);
/* Bytes that may still be allocated: up to memory_cap, and on a GPU what its driver has free; SIZE_MAX on a CPU without
 * a cap, whose memory is everybody's. */
size_t bs_device_memory_left(const bs_device *device);

/* Zeroed host memory that a copy to or from this device reaches without a stop on the way: page-locked for a GPU, so
 * that bs_copy_to_device and bs_copy_to_host only queue. `what` names it in errors. */
bs_status bs_host_alloc(bs_device *device, size_t bytes, const char *what, void **out);
void bs_host_free(bs_device *device, void *memory); /* NULL is fine */

/* From now on (true) a kernel queued on this stream may start while the one before it is still ending: programmatic
 * dependent launch, for ops whose kernels know how; results are the same. A CPU ignores it. attend and the GEMMs then
 * read tables, quantized pages and weights while kernels before them run, several back: what writes those is queued
 * before a kernel that is queued with overlap off. */
void bs_stream_set_overlap(bs_stream *stream, bool overlap);

/* Graphs: what is queued between begin and end is recorded instead of run, and launched as often as wanted with one
 * call. Pointers and sizes are fixed by the recording; the contents of device memory are read at each launch, so
 * lengths may grow. Between begin and end only ops, copies on the device and fills may be queued; nothing may be
 * synchronised. Whatever failed in between, bs_capture_end must be called, and the stream is usable afterwards.
 * BS_STATUS_UNSUPPORTED on a CPU. */
typedef struct bs_graph bs_graph;
bs_status bs_capture_begin(bs_stream *stream);
bs_status bs_capture_end(bs_stream *stream, bs_graph **out);
bs_status bs_graph_launch(bs_stream *stream, bs_graph *graph);
void bs_graph_destroy(bs_graph *graph); /* not while it runs; NULL is fine */

/* Timers: the time between two marks on a stream, by the device's own clock (on a CPU the monotonic clock). Reading
 * waits for the stop mark. Not inside a capture. BS_STATUS_RANGE if it was not started and stopped. */
typedef struct bs_timer bs_timer;
bs_status bs_timer_create(bs_device *device, bs_timer **out);
void bs_timer_destroy(bs_timer *timer);
bs_status bs_timer_start(bs_stream *stream, bs_timer *timer);
bs_status bs_timer_stop(bs_stream *stream, bs_timer *timer);
bs_status bs_timer_ms(bs_timer *timer, double *ms);

/* Copies and fills, stream-ordered. Host memory must stay untouched until bs_stream_sync. */
bs_status bs_copy_to_device(bs_stream *stream, void *device_dst, const void *host_src, size_t bytes);
bs_status bs_copy_to_host(bs_stream *stream, void *host_dst, const void *device_src, size_t bytes);
bs_status bs_copy_on_device(bs_stream *stream, void *device_dst, const void *device_src, size_t bytes);
bs_status bs_fill_zero(bs_stream *stream, void *device_dst, size_t bytes);

/* ---- weights ---------------------------------------------------------------------------------------------- */

/* A view of a matrix [rows, cols] in its blocks, row after row: y = W x takes cols in and gives rows out.
 * The view may begin in the middle of a block (a cut at a head): data points at the block that holds column 0 and
 * first_col counts from that block's first element. Blocks at both ends may be shared with another rank's view. */
typedef struct bs_weight {
    bs_type type;
    const void *data; /* [device] */
    size_t row_bytes; /* from one row of the tensor to the next */
    int64_t n_rows, n_cols;
    int first_col; /* 0 … block − 1 */
} bs_weight;

/* Turns n values of one row of blocks into f32; n and the start are multiples of the block. Host function, the
 * scalar reference: values are exact products and sums in f32 as the format's authors define them. */
bs_status bs_dequantize_row(bs_type type, const void *blocks, float *out, int64_t n);
/* The inverse for tests and make-model: F32 F16 BF16 Q8_0 Q4_0 Q4_1 (round to nearest); others UNSUPPORTED. */
bs_status bs_quantize_row(bs_type type, const float *in, void *blocks, int64_t n);

/* ---- dense ops -------------------------------------------------------------------------------------------- */
/* `act` is the activation type: the device's info.act_type; a GPU's ops take any of F32, F16 and BF16. Residuals x and
 * partial sums are always f32. */

typedef struct bs_embed_args {
    const bs_weight *table; /* [vocab, n] whole table; first_col 0 */
    const int32_t *tokens;  /* [device] [T], each 0 … vocab − 1 */
    int n_tokens;
    float *x; /* [device] [T, n] f32 */
} bs_embed_args;
bs_status bs_op_embed(bs_stream *stream, const bs_embed_args *args);

typedef struct bs_rmsnorm_args {
    const float *x;    /* [device] [T, n] f32 */
    const float *gain; /* [device] [n] f32 */
    const float *add;  /* [device] [T, n] f32 or NULL: x += add first, and x_out gets the sum */
    float *x_out;      /* [device] [T, n] f32; may equal x; needed when add is given */
    /* [device] [T] or NULL: output row t comes from input row rows[t] (add must be NULL) */
    const int32_t *rows;
    int n_tokens, n;
    float eps;
    bs_type act;
    void *out; /* [device] [T, n] act; sums over n in f32 or better */
} bs_rmsnorm_args;
bs_status bs_op_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *args);

/* y = x Wᵀ (+ bias). No rows or no columns are fine: nothing, or zeros (plus bias). On a CPU T small is a GEMV that
 * dequantizes in registers with f32 activations; T large is CBLAS on dequantized tiles in the workspace. */
typedef struct bs_gemm_args {
    const bs_weight *w;
    const float *bias; /* [device] [rows] f32 or NULL */
    const void *x;     /* [device] [T, cols] act, ldx elements from row to row */
    int64_t ldx;
    int n_tokens;
    bs_type act;
    bs_type out_type; /* F32 or act */
    void *y;          /* [device] [T, rows], ldy elements from row to row */
    int64_t ldy;
    void *workspace; /* [device] bs_gemm_workspace_bytes */
    size_t workspace_bytes;
    /* y is [T, rows / 2]: silu of the first half of W's rows times the second. Both sums stay f32; no bias. */
    bool gated;
} bs_gemm_args;
bs_status bs_op_gemm(bs_stream *stream, const bs_gemm_args *args);
/* Whether the device takes these operands gated too. */
bool bs_gemm_gates(const bs_device *device, const bs_gemm_args *args);
/* Workspace for any view of at most rows × cols and at most n_tokens tokens. */
size_t bs_gemm_workspace_bytes(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens);

typedef struct bs_silu_mul_args {
    const void *gate, *up; /* [device] [T, n] act, ld elements from row to row */
    int64_t ld;
    int n_tokens;
    int64_t n;
    bs_type act;
    void *out; /* [device] [T, n] act, ld_out from row to row; may equal gate */
    int64_t ld_out;
} bs_silu_mul_args;
bs_status bs_op_silu_mul(bs_stream *stream, const bs_silu_mul_args *args);

enum { BS_CHAIN_COUNTERS = 2 };

/* All dense work from one layer's attention to the next one's q, k and v, for one token, in one go:
 *   x += W_o a; n = norm(x); f = silu(W_gate n) · (W_up n); x += W_down f; n = norm(x); out = W_qkv n + bias, or n.
 * A GPU has it as one kernel that streams the weights without a stop. One rank only: nothing is summed over ranks in
 * between. BS_STATUS_UNSUPPORTED where bs_dense_chain_fits says no. */
typedef struct bs_dense_chain_args {
    int64_t n_hidden, n_ffn;
    bs_type act;
    const bs_weight *o, *gate_up, *down; /* [hidden, a's columns]; gate's rows, then up's; [hidden, ffn] */
    const bs_weight *qkv;                /* NULL: out is n */
    const float *qkv_bias;               /* [device] [rows of qkv] or NULL */
    const void *attended;                /* a: [device] [columns of o] act */
    float *x;                            /* [device] [hidden] in place */
    float *x_other, *sum;                /* [device] [hidden] scratch */
    void *ffn;                           /* [device] [ffn] act, scratch */
    const float *ffn_gain, *next_gain;   /* [device] [hidden] of the two norms */
    float eps;
    void *out;         /* [device] [rows of qkv, or hidden] out_type */
    bs_type out_type;  /* F32 or act; act without qkv */
    uint64_t *counter; /* [device] [BS_CHAIN_COUNTERS] zero at first, then this op's alone, on one stream */
} bs_dense_chain_args;
bs_status bs_op_dense_chain(bs_stream *stream, const bs_dense_chain_args *args);
/* Whether this device has it for these sizes; n_attended: columns of o. */
bool bs_dense_chain_fits(const bs_device *device, int64_t n_attended, int64_t n_hidden, int64_t n_ffn,
                         bs_type act);

/* ---- the KV cache's formats and pools --------------------------------------------------------------------- */

enum {
    BS_PAGE_TOKENS = 128,   /* tokens of a page */
    BS_BLOCK_TOKENS = 1024, /* tokens of a block of the canonical order */
    BS_MAX_HEAD_DIM = 256
};

typedef enum bs_v_encoder { BS_V_ENCODER_BEST, BS_V_ENCODER_PLAIN } bs_v_encoder;

/* A KV format, as docs/kv-format.md names and defines it. Parsed and printed by src/cache/format.h. */
typedef struct bs_kv_format {
    int k_bits, v_bits; /* 16 (both, f16), 8, 4 or 2 */
    /* kc: a group of K is `group` tokens of one channel; else kt: min(group, D) channels of one token */
    bool k_per_channel;
    int group;              /* 32, 64 or 128 */
    bool hadamard;          /* q, k and v are stored and used rotated by Hadamard/√D */
    bool k_norm;            /* K is divided by each token's root mean square before quantizing */
    int n_sink, n_recent;   /* whole f16 pages kept at the start and behind the open page */
    bs_v_encoder v_encoder; /* range of a 2-bit V group */
} bs_kv_format;

/* Shape of this rank's part of the cache. */
typedef struct bs_kv_shape {
    int n_layers, n_kv_heads, head_dim; /* head_dim 64 or 128 */
    bs_kv_format format;
} bs_kv_shape;

/* Bytes of one slot in each pool, in the device's own order; 0 for the quantized slot of an f16 format. A pool of n
 * slots is n × that many bytes, 4096-aligned. Slots are addressed by number only; their inside belongs to kernels/.
 * BS_STATUS_UNSUPPORTED if this device has no kernels for the format and head size. */
bs_status bs_kv_slot_bytes(const bs_device *device, const bs_kv_shape *shape, size_t *f16_slot_bytes,
                           size_t *quant_slot_bytes);

typedef struct bs_kv_pools {
    const bs_kv_shape *shape;
    void *f16_pool;   /* [device] */
    void *quant_pool; /* [device], NULL when there are no quantized slots */
    uint32_t n_f16_slots, n_quant_slots;
} bs_kv_pools;

/* Canonical bytes of one page of one (layer, KV head), as docs/kv-format.md lays them out. */
typedef struct bs_kv_page_bytes {
    size_t k, k_meta, v, v_meta; /* quantized: codes of 128 tokens and their parameters */
    size_t f16;                  /* f16 page: K then V, [token][D] */
} bs_kv_page_bytes;
bs_kv_page_bytes bs_kv_canonical_bytes(const bs_kv_format *format, int head_dim);

/* cos and sin of position × inv_freq: product in f64, rounded to f32 after cos and sin, times `attention_factor`. */
typedef struct bs_rope_table_args {
    const int32_t *positions; /* [device] [T]; −1 gives cos 1, sin 0 */
    int n_tokens;
    const double *inv_freq; /* [device] [n_rot / 2] */
    int n_rot;              /* rotated channels, even, ≤ D */
    float attention_factor;
    float *cos_sin; /* [device] [T, n_rot / 2, 2] f32 */
} bs_rope_table_args;
bs_status bs_op_rope_table(bs_stream *stream, const bs_rope_table_args *args);

/* RoPE on q and k, then the Hadamard if the format asks, then the write of k and v (rounded to fp16) of the tokens
 * whose open page this rank owns. q is rotated in place for every token. */
typedef struct bs_append_args {
    const bs_kv_pools *pools;
    int layer;
    int n_tokens, n_heads; /* T, H */
    void *q;               /* [device] [T, H, D] act, in place, q_ld elements from token to token */
    const void *k, *v;     /* [device] [T, K, D] act, kv_ld elements from token to token */
    int64_t q_ld, kv_ld;
    bs_type act;
    const float *cos_sin; /* [device] [T, n_rot / 2, 2] */
    int n_rot;
    bool rope_interleaved;   /* pairs are (2i, 2i + 1); else (i, i + n_rot / 2) */
    const int32_t *f16_slot; /* [device] [T] f16 slot of the token's page, −1: not this rank's (or unused) */
    const int32_t *page_token; /* [device] [T] 0 … 127, the token's place in its page */
} bs_append_args;
bs_status bs_op_append(bs_stream *stream, const bs_append_args *args);

/* Quantizes whole f16 pages, all layers and heads, into quantized slots (docs/kv-format.md: the same codes on every
 * device and instruction set). Reads the f16 slots, does not free or clear them. */
typedef struct bs_quantize_args {
    const bs_kv_pools *pools;
    int n_pages;
    const uint32_t *f16_slot, *quant_slot; /* [device] [n_pages] */
} bs_quantize_args;
bs_status bs_op_quantize(bs_stream *stream, const bs_quantize_args *args);

/* Between a slot and canonical bytes, bit for bit, one (page, layer, KV head) at a time each; `n` of them in one call.
 * Canonical pointers are host memory on a CPU and [device] staging, 4-byte aligned, on a GPU. NULL parts are skipped.
 */
typedef struct bs_kv_page_ref {
    uint32_t slot;
    int layer, kv_head;
    void *k, *k_meta, *v,
        *v_meta; /* quantized page; or f16 page: k is K [128][D], v is V [128][D], metas NULL */
} bs_kv_page_ref;
typedef struct bs_pack_args {
    const bs_kv_pools *pools;
    bool quantized; /* which pool `slot` counts in */
    int n;
    const bs_kv_page_ref *pages; /* [host] [n] */
} bs_pack_args;
bs_status bs_op_pack(bs_stream *stream, const bs_pack_args *args);   /* slot → canonical */
bs_status bs_op_unpack(bs_stream *stream, const bs_pack_args *args); /* canonical → slot */

/* Clears whole slots (all layers and heads): a freed slot is zeroed before it is used again. */
typedef struct bs_clear_slots_args {
    const bs_kv_pools *pools;
    bool quantized;
    int n;
    const uint32_t *slot; /* [device] [n] */
} bs_clear_slots_args;
bs_status bs_op_clear_slots(bs_stream *stream, const bs_clear_slots_args *args);

/* ---- attention -------------------------------------------------------------------------------------------- */

/* Attention of each sequence's query tokens over this shard's pages of that sequence: one launch, splits merged
 * inside. Writes normalised O and natural-log LSE for every (token, head); nothing visible gives O = 0, LSE = −inf.
 *
 * Page lists hold this shard's pages in the order sink (f16), quantized, f16 (recent and open), each ascending in
 * page_index; the three counts count them. Query token i of sequence b (i from 0) stands at global position
 * P = q_pos0[b] + i and sees positions j with max(0, P − window + 1) ≤ j ≤ P (window 0: no lower bound), and
 * j < n_tokens[b]. Bytes of pages beyond these positions may hold anything and must not matter.
 * q comes and O leaves in the format's rotated basis. Worst (token, head) error against fp64 attention over the
 * dequantized cache: tests/tolerances.h.
 *
 * A GPU has two ways. Decode's reads the pages as they are, once for every 8 rows (query token, query head of a KV head).
 * Where ceil(max_tokens / max_seqs) · G rows are many (64; 128 with 4 bits of K), pages become fp16 in the workspace first,
 * slab by slab, and are multiplied at the matrix units' rate. That queues two kernels a slab of max_pages (or of what a
 * window lets be seen), whether its pages are there or not: outside graphs pass what the lists hold. Sequences of few query
 * tokens beside a chunk are right, and slow: give them a call of their own. */
typedef struct bs_attend_args {
    const bs_kv_pools *pools;
    int layer;
    /* B, ΣT and length of the page lists: upper bounds, fixed for a graph. The sequences may be some of a step's: then
     * the tables begin at the first of them, and q_start and page_start do not begin at 0. */
    int max_seqs, max_tokens, max_pages;
    int n_heads;   /* H, a multiple of K */
    const void *q; /* [device] [ΣT, H, D] act, q_ld elements from token to token */
    int64_t q_ld;
    bs_type act;
    const int32_t *q_start;    /* [device] [B + 1] first query token of each sequence */
    const int32_t *q_pos0;     /* [device] [B] global position of that token; −1: unused slot */
    const int32_t *page_start; /* [device] [B + 1] into page_slot and page_index */
    const uint32_t *page_slot; /* [device] slot in the page's pool */
    const int32_t *page_index; /* [device] global page number: positions 128·p … 128·p + 127 */
    const int32_t *n_sink, *n_quant, *n_f16; /* [device] [B] */
    const int32_t *n_tokens;                 /* [device] [B] global length, this step's tokens included */
    float scale;                             /* of q·k, usually 1/√D */
    int window;
    /* [device] zeroed once when allocated, then attend's alone, on one stream; the whole of it in every call, whatever its
     * bounds: what must stay is at its start, what need not at its end */
    void *workspace;
    size_t workspace_bytes;
    float *o;   /* [device] [ΣT, H, D] f32 */
    float *lse; /* [device] [ΣT, H] f32 */
    /* [device] [ΣT, H, D] or NULL: what bs_op_unrotate makes of O, instead of O. Only where these pages are all there are. */
    void *attended;
    bs_type attended_type;
} bs_attend_args;
bs_status bs_op_attend(bs_stream *stream, const bs_attend_args *args);
/* Whether the device can write `attended` of that type in a call of these bounds. */
bool bs_attend_turns(const bs_device *device, const bs_attend_args *args);
/* Enough for calls with these bounds and with smaller ones. */
size_t bs_attend_workspace_bytes(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                                 int max_tokens, int max_pages);

/* ---- merging partial states ------------------------------------------------------------------------------- */
/* The one rule (DESIGN §3), f32: M = max LSE_r; w_r = LSE_r == −inf ? 0 : exp(LSE_r − M);
 * O = Σ w_r O_r / Σ w_r; LSE = M + ln Σ w_r; all empty: O = 0, LSE = −inf. Terms with w_r = 0 are skipped. */

typedef struct bs_merge_args {
    int n_parts;      /* states to merge, in the order 0 … n_parts − 1 */
    int n_rows, dim;  /* rows = tokens × heads; D */
    const float *o;   /* [device] [n_parts] × [rows, D], o_stride floats apart */
    const float *lse; /* [device] [n_parts] × [rows], lse_stride floats apart */
    int64_t o_stride, lse_stride;
    float *o_out;   /* [device] [rows, D]; must not overlap o */
    float *lse_out; /* [device] [rows] or NULL */
} bs_merge_args;
bs_status bs_op_merge(bs_stream *stream, const bs_merge_args *args);

/* One rank's share of the sum: out[row] = [O·w, w] with w = exp(lse − max), row by row, dim + 1 floats (0 when lse is
 * −inf, whatever O holds). For `allreduce`. */
typedef struct bs_merge_weigh_args {
    int n_rows, dim;
    const float *o;       /* [device] [rows, D] */
    const float *lse;     /* [device] [rows] */
    const float *lse_max; /* [device] [rows] maximum over the ranks */
    float *out;           /* [device] [rows, D + 1] */
} bs_merge_weigh_args;
bs_status bs_op_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *args);

/* O = sum[0…D−1] / sum[D], LSE = max + ln sum[D]; sum[D] = 0 gives the empty state. */
typedef struct bs_merge_finish_args {
    int n_rows, dim;
    const float *sum;     /* [device] [rows, D + 1] */
    const float *lse_max; /* [device] [rows] */
    float *o;             /* [device] [rows, D] */
    float *lse;           /* [device] [rows] or NULL */
} bs_merge_finish_args;
bs_status bs_op_merge_finish(bs_stream *stream, const bs_merge_finish_args *args);

/* For `fold`: lse_all is [n_parts, rows]; o *= exp(lse_all[part] − LSE of all), 0 where that state is empty. */
typedef struct bs_merge_fold_args {
    int n_parts, part, n_rows, dim;
    const float *lse_all; /* [device] [n_parts, rows] */
    float *o;             /* [device] [rows, D] in place */
} bs_merge_fold_args;
bs_status bs_op_merge_fold(bs_stream *stream, const bs_merge_fold_args *args);

/* Turns rows of O back: y = x · Hadamard/√D for each head (the matrix is its own inverse), and rounds to act. Without
 * the rotation it is the conversion alone. */
typedef struct bs_unrotate_args {
    bool hadamard;
    int n_rows, dim; /* rows = tokens × heads */
    const float *o;  /* [device] [rows, D] f32 */
    bs_type act;
    void *out; /* [device] [rows, D] act; may equal o when act is F32 */
} bs_unrotate_args;
bs_status bs_op_unrotate(bs_stream *stream, const bs_unrotate_args *args);

/* ---- a yardstick ------------------------------------------------------------------------------------------ */

/* Reads every byte once, as fast as the device can: the read bandwidth that benches are measured against.
 * data: [device] [bytes], 16-byte aligned, bytes a multiple of 16. sink: [device] one word; the exclusive or of all
 * 32-bit words of data is XORed into it, so that no read can be left out and a test can tell. */
bs_status bs_op_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink);

/* ---- random numbers --------------------------------------------------------------------------------------- */
/* For models and caches that have a shape and no contents (benches, tests). Counters go in, so what an element is does
 * not depend on who else is drawn, on which rank, or on the device: the same bits everywhere. */

/* Elements of one tensor: normal enough (a sum of four uniforms, ±3.45 std), mean 0. */
typedef struct bs_random_fill_args {
    bs_type type;     /* BF16 or F16 */
    void *out;        /* [device] [n_rows, n_cols], 8-byte aligned */
    size_t row_bytes; /* from row to row, a multiple of 8 */
    int64_t n_rows, n_cols;
    int64_t first, ld; /* out[r, c] is element first + r · ld + c of the tensor; multiples of 4, as n_cols */
    uint64_t seed;
    uint32_t tensor;
    float std;
} bs_random_fill_args;
bs_status bs_op_random_fill(bs_stream *stream, const bs_random_fill_args *args);

/* A whole f16 slot: K and V of 128 tokens, all layers and heads, mean 0 and standard deviation 1. */
typedef struct bs_random_page_args {
    const bs_kv_pools *pools;
    uint32_t slot;
    int64_t page;      /* of its sequence */
    int first_kv_head; /* of the model: the pools' head 0 */
    uint64_t seed;
} bs_random_page_args;
bs_status bs_op_random_page(bs_stream *stream, const bs_random_page_args *args);

/* ---- sampling --------------------------------------------------------------------------------------------- */

enum { BS_MAX_CANDIDATES = 256 };

/* How one sequence draws its token. */
typedef struct bs_sampling {
    float temperature;    /* 0: greedy */
    int32_t top_k;        /* 0: all */
    float top_p;          /* 1: all */
    float min_p;          /* 0: all */
    float repeat_penalty; /* 1: none; each distinct id of prompt and answer once */
    uint32_t pad;         /* 0 */
    uint64_t seed;
} bs_sampling;

typedef struct bs_candidate {
    float logit; /* after penalty and temperature */
    int32_t id;
} bs_candidate;

/* Whether candidates beyond the best 256 of each shard can matter (DESIGN §3, Sampling). */
bool bs_sampling_needs_all(const bs_sampling *sampling);

/* This vocabulary shard's candidates for n rows of logits. Applies penalty and temperature (when > 0) to the logits in
 * place, then gives the best n_out (≤ shard size; 256 or everything) by descending logit, ties to the lower id,
 * padded with (−inf, −1), and the natural log-sum-exp of the whole shard's row. A greedy row gets its best alone where n_out
 * is 256 or less: nothing else of it can be drawn. */
typedef struct bs_candidates_args {
    int n_rows;
    float *logits; /* [device] [rows, ld] f32 in place */
    int64_t ld;
    int32_t vocab0, n_vocab;     /* this shard's ids: vocab0 … vocab0 + n_vocab − 1 */
    const bs_sampling *sampling; /* [device] [rows] */
    const uint64_t *const
        *seen; /* [device] [rows] bitmaps of the ids of prompt and answer, over the whole vocabulary;
                                    or NULL when no row has a penalty */
    int n_out;
    bs_candidate *out; /* [device] [rows, n_out] */
    float *lse;        /* [device] [rows] */
} bs_candidates_args;
bs_status bs_op_candidates(bs_stream *stream, const bs_candidates_args *args);

/* Draws a token a row from the gathered candidates of all shards, each shard's sorted: the same on every rank. Top-k,
 * then top-p, then min-p; by descending logit, ties to the lower id, the first whose cumulative probability exceeds
 * u = (first Philox4x32-10 word + 0.5) / 2³², key = seed, counter = (position, draw, 0, 0). */
typedef struct bs_sample_args {
    int n_rows, n_shards, n_per_shard;
    /* [device] [n_shards] × [rows, n_per_shard], shard_stride candidates apart */
    const bs_candidate *candidates;
    const float *lse; /* [device] [n_shards] × [rows], lse_stride floats apart */
    int64_t shard_stride, lse_stride;
    const bs_sampling *sampling; /* [device] [rows] */
    const int32_t *position;     /* [device] [rows] position of the token being drawn */
    const int32_t *draw;         /* [device] [rows] 0 unless a position is drawn again */
    bs_candidate *scratch;       /* [device] [n_shards × n_per_shard] */
    int32_t *token;              /* [device] [rows] */
    float *logprob;              /* [device] [rows] log-probability of the token under temperature, or NULL */
} bs_sample_args;
bs_status bs_op_sample(bs_stream *stream, const bs_sample_args *args);

/* Marks ids as seen: bit id of bitmap. ids [device] [n], −1 is skipped. */
bs_status bs_op_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n);

/* How a drawn token reaches the next step without the host: `last` [device] holds one id a sequence slot.
 * keep: last[seq[i]] = token[i] for n rows, seq −1 is skipped. feed: ids[i] < 0 becomes last[−1 − ids[i]]. */
bs_status bs_op_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                            int n);
bs_status bs_op_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last);

#endif
