/* cpu_ops.h: the ops of the CPU backend, one file each beside this one. Private to kernels/.
 *
 * Arguments have been checked (kernels/ops_*.c). Each looks at stream->device->info.isa for its SIMD; all
 * instruction sets give the same codes, and the same sums where the header of the file says so. */
#ifndef BS_CPU_OPS_H
#define BS_CPU_OPS_H

#include "kernels/backend.h"

#define X(op) bs_status bs_cpu_##op(bs_stream *stream, const bs_##op##_args *args);
BS_OP_LIST(X)
#undef X
bs_status bs_cpu_pack(bs_stream *stream, const bs_pack_args *args);
bs_status bs_cpu_unpack(bs_stream *stream, const bs_pack_args *args);
bs_status bs_cpu_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n);
bs_status bs_cpu_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq, int n);
bs_status bs_cpu_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last);
bs_status bs_cpu_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink);

/* One token of silu_mul: gate, up, out [n]; out may equal gate. */
void bs_cpu_silu_row_avx2(const float *gate, const float *up, int64_t n, float *out);
void bs_cpu_silu_row_avx512(const float *gate, const float *up, int64_t n, float *out);

bs_status bs_cpu_slot_bytes(const bs_device *device, const bs_kv_shape *shape, size_t *f16, size_t *quant);
size_t bs_cpu_gemm_workspace(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens);
size_t bs_cpu_attend_workspace(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                               int max_tokens, int max_pages);

#endif
