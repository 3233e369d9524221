/* backend.h: what a device implements. Private to kernels/.
 *
 * ops_cache.c and ops_dense.c check the arguments of each op, for every device, and then call the device's own function
 * from this table: kernels/cpu/backend.c fills one per instruction set, kernels/cuda/backend.cu one for GPUs.
 */
#ifndef BS_BACKEND_H
#define BS_BACKEND_H

#include "kernels/kernels.h"

/* X(op): bs_status op(bs_stream *, const bs_<op>_args *) */
#define BS_OP_LIST(X)                                                                                        \
    X(embed)                                                                                                 \
    X(rmsnorm)                                                                                               \
    X(gemm)                                                                                                  \
    X(silu_mul)                                                                                              \
    X(rope_table)                                                                                            \
    X(append)                                                                                                \
    X(quantize)                                                                                              \
    X(clear_slots)                                                                                           \
    X(attend)                                                                                                \
    X(merge)                                                                                                 \
    X(merge_weigh)                                                                                           \
    X(merge_finish)                                                                                          \
    X(merge_fold)                                                                                            \
    X(unrotate)                                                                                              \
    X(candidates)                                                                                            \
    X(sample)                                                                                                \
    X(random_fill)                                                                                           \
    X(random_page)

typedef struct bs_backend {
#define X(op) bs_status (*op)(bs_stream * stream, const bs_##op##_args *args);
    BS_OP_LIST(X)
#undef X
    bs_status (*pack)(bs_stream *stream, const bs_pack_args *args);
    bs_status (*unpack)(bs_stream *stream, const bs_pack_args *args);
    bs_status (*mark_seen)(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n);
    bs_status (*keep_tokens)(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                             int n);
    bs_status (*feed_tokens)(bs_stream *stream, int32_t *ids, int n, const int32_t *last);
    bs_status (*stream_read)(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink);

    /* NULL where there is none. */
    bool (*gemm_gates)(const bs_device *device, const bs_gemm_args *args);
    bool (*attend_turns)(const bs_device *device, const bs_attend_args *args);
    bs_status (*dense_chain)(bs_stream *stream, const bs_dense_chain_args *args);
    bool (*dense_chain_fits)(const bs_device *device, int64_t n_attended, int64_t n_hidden, int64_t n_ffn,
                             bs_type act);

    bs_status (*slot_bytes)(const bs_device *device, const bs_kv_shape *shape, size_t *f16, size_t *quant);
    size_t (*gemm_workspace)(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens);
    size_t (*attend_workspace)(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                               int max_tokens, int max_pages);

    void *(*memory_alloc)(bs_device *device, size_t bytes); /* zeroed, 4096-aligned, or NULL */
    void (*memory_free)(bs_device *device, void *memory);
    void *(*host_alloc)(bs_device *device, size_t bytes); /* zeroed, or NULL */
    void (*host_free)(bs_device *device, void *memory);
    size_t (*memory_available)(const bs_device *device); /* SIZE_MAX: nobody knows */
    bs_status (*copy)(bs_stream *stream, void *dst, const void *src, size_t bytes,
                      int direction); /* BS_COPY_… */
    bs_status (*fill_zero)(bs_stream *stream, void *dst, size_t bytes);
    bs_status (*stream_open)(bs_stream *stream);
    void (*stream_close)(bs_stream *stream);
    bs_status (*stream_sync)(bs_stream *stream);
    bs_status (*stream_fault)(bs_stream *stream);    /* takes what kernels recorded into stream->fault */
    void *(*stream_native)(const bs_stream *stream); /* or NULL */
    void (*device_close)(bs_device *device);

    /* Graphs; all NULL where there are none. *graph is the backend's own. */
    bs_status (*capture_begin)(bs_stream *stream);
    bs_status (*capture_end)(bs_stream *stream, void **graph);
    bs_status (*graph_launch)(bs_stream *stream, void *graph);
    void (*graph_close)(void *graph);

    /* A pair of marks; *marks is the backend's own. */
    bs_status (*timer_open)(bs_device *device, void **marks);
    void (*timer_close)(void *marks);
    bs_status (*timer_mark)(bs_stream *stream, void *marks, int which); /* 0 start, 1 stop */
    bs_status (*timer_read)(void *marks, double *ms);

    bs_status (*device_enter)(bs_device *device); /* NULL: any thread may */
} bs_backend;

enum { BS_COPY_TO_DEVICE, BS_COPY_TO_HOST, BS_COPY_ON_DEVICE };

/* Where an op says that its numbers are not: K, V, or on a GPU a logit or a row (fault_kind.h). The first one wins. */
typedef struct bs_numeric_fault {
    int32_t seen, layer, kv_head, slot, token, is_v;
} bs_numeric_fault;

struct bs_device {
    const bs_backend *backend;
    bs_device_info info;
    size_t allocated_bytes;
    uint64_t allocation_count;
    void *state; /* the backend's own: thread pool, cuBLAS handle */
    int ordinal; /* of the configuration */
};

struct bs_stream {
    bs_device *device;
    bs_numeric_fault fault;
    bool overlap;    /* bs_stream_set_overlap; launchers of kernels/cuda read it */
    bool background; /* bs_stream_create_background; stream_open reads it */
    void *state;     /* the backend's own: cudaStream_t */
};

/* Fills device->backend, info and state. */
bs_status bs_cpu_device_open(const bs_device_config *config, bs_device *device);
#ifdef BS_HAVE_CUDA
#ifdef __cplusplus
extern "C"
#endif
    bs_status
    bs_cuda_device_open(const bs_device_config *config, bs_device *device);
#ifdef __cplusplus
extern "C"
#endif
    int
    bs_cuda_count_gpus(void);
#endif

#endif
