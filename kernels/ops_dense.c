/* ops_dense.c: the dense and sampling ops of kernels.h: arguments are checked here, once for every device,
 * then the device's own function runs. Empty work (no tokens, no rows) never reaches a device. */
#include "kernels/ops_check.h"

bs_status bs_op_embed(bs_stream *stream, const bs_embed_args *a)
{
    REQUIRE("embed", a->table && a->table->data && a->table->first_col == 0);
    REQUIRE("embed", a->n_tokens >= 0);
    if (a->n_tokens == 0) return BS_STATUS_OK;
    REQUIRE("embed", a->tokens && a->x);
    return stream->device->backend->embed(stream, a);
}

bs_status bs_op_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *a)
{
    REQUIRE("rmsnorm", a->n_tokens >= 0 && a->n > 0);
    if (a->n_tokens == 0) return BS_STATUS_OK;
    REQUIRE("rmsnorm", a->x && a->gain && a->out && is_act(stream, a->act));
    REQUIRE("rmsnorm", !a->add || (a->x_out && !a->rows));
    return stream->device->backend->rmsnorm(stream, a);
}

bs_status bs_op_gemm(bs_stream *stream, const bs_gemm_args *a)
{
    REQUIRE("gemm", a->w && a->n_tokens >= 0 && a->w->n_rows >= 0 && a->w->n_cols >= 0);
    if (a->n_tokens == 0 || a->w->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("gemm", (unsigned)a->w->type < BS_TYPE_COUNT && a->w->first_col >= 0 &&
                        a->w->first_col < bs_type_block(a->w->type));
    REQUIRE("gemm", a->w->n_cols == 0 || (a->w->data && a->x && a->ldx >= a->w->n_cols));
    REQUIRE("gemm", a->y && a->ldy >= a->w->n_rows / (a->gated ? 2 : 1) && is_act(stream, a->act));
    REQUIRE("gemm", a->out_type == BS_TYPE_F32 || a->out_type == a->act);
    REQUIRE("gemm", a->workspace_bytes >=
                        bs_gemm_workspace_bytes(stream->device, a->w->n_rows, a->w->n_cols, a->n_tokens));
    if (a->gated && !bs_gemm_gates(stream->device, a))
        return bs_fail(BS_STATUS_UNSUPPORTED, "gemm: %s has no gated product of %s weights and %d tokens",
                       stream->device->info.name, bs_type_name(a->w->type), a->n_tokens);
    return stream->device->backend->gemm(stream, a);
}

bool bs_gemm_gates(const bs_device *device, const bs_gemm_args *a)
{
    return device->backend->gemm_gates && !a->bias && a->w->n_rows % 2 == 0 &&
           device->backend->gemm_gates(device, a);
}

size_t bs_gemm_workspace_bytes(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens)
{
    return device->backend->gemm_workspace(device, n_rows, n_cols, n_tokens);
}

bs_status bs_op_silu_mul(bs_stream *stream, const bs_silu_mul_args *a)
{
    REQUIRE("silu_mul", a->n_tokens >= 0 && a->n >= 0);
    if (a->n_tokens == 0 || a->n == 0) return BS_STATUS_OK;
    REQUIRE("silu_mul",
            a->gate && a->up && a->out && a->ld >= a->n && a->ld_out >= a->n && is_act(stream, a->act));
    return stream->device->backend->silu_mul(stream, a);
}

bool bs_dense_chain_fits(const bs_device *device, int64_t n_attended, int64_t n_hidden, int64_t n_ffn,
                         bs_type act)
{
    const bs_backend *backend = device->backend;
    return backend->dense_chain_fits && backend->dense_chain_fits(device, n_attended, n_hidden, n_ffn, act);
}

bs_status bs_op_dense_chain(bs_stream *stream, const bs_dense_chain_args *a)
{
    REQUIRE("dense_chain", a->o && a->gate_up && a->down && a->attended && a->x && a->x_other);
    REQUIRE("dense_chain", a->sum && a->ffn && a->ffn_gain && a->next_gain && a->out && a->counter);
    REQUIRE("dense_chain", a->out_type == a->act || (a->qkv && a->out_type == BS_TYPE_F32));
    REQUIRE("dense_chain", a->o->n_rows == a->n_hidden && a->down->n_rows == a->n_hidden &&
                               a->down->n_cols == a->n_ffn && a->gate_up->n_rows == 2 * a->n_ffn &&
                               a->gate_up->n_cols == a->n_hidden &&
                               (!a->qkv || a->qkv->n_cols == a->n_hidden));
    if (!bs_dense_chain_fits(stream->device, a->o->n_cols, a->n_hidden, a->n_ffn, a->act))
        return bs_fail(BS_STATUS_UNSUPPORTED, "dense_chain: %s has none for %lld channels",
                       stream->device->info.name, (long long)a->n_hidden);
    return stream->device->backend->dense_chain(stream, a);
}

bs_status bs_op_candidates(bs_stream *stream, const bs_candidates_args *a)
{
    REQUIRE("candidates", a->n_rows >= 0 && a->n_vocab >= 0 && a->n_out >= 1);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("candidates",
            (a->n_vocab == 0 || a->logits) && a->ld >= a->n_vocab && a->sampling && a->out && a->lse);
    return stream->device->backend->candidates(stream, a);
}

bs_status bs_op_sample(bs_stream *stream, const bs_sample_args *a)
{
    REQUIRE("sample", a->n_rows >= 0 && a->n_shards >= 1 && a->n_per_shard >= 1);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("sample",
            a->candidates && a->lse && a->sampling && a->position && a->draw && a->scratch && a->token);
    return stream->device->backend->sample(stream, a);
}

bs_status bs_op_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n)
{
    REQUIRE("mark_seen", n >= 0 && (n == 0 || (bitmap && ids)));
    return n == 0 ? BS_STATUS_OK : stream->device->backend->mark_seen(stream, bitmap, ids, n);
}

bs_status bs_op_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq, int n)
{
    REQUIRE("keep_tokens", n >= 0 && (n == 0 || (last && token && seq)));
    return n == 0 ? BS_STATUS_OK : stream->device->backend->keep_tokens(stream, last, token, seq, n);
}

bs_status bs_op_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last)
{
    REQUIRE("feed_tokens", n >= 0 && (n == 0 || (ids && last)));
    return n == 0 ? BS_STATUS_OK : stream->device->backend->feed_tokens(stream, ids, n, last);
}

bs_status bs_op_random_fill(bs_stream *stream, const bs_random_fill_args *a)
{
    REQUIRE("random_fill", a->n_rows >= 0 && a->n_cols >= 0 && a->n_cols % 4 == 0);
    REQUIRE("random_fill", a->type == BS_TYPE_BF16 || a->type == BS_TYPE_F16);
    REQUIRE("random_fill", a->first >= 0 && a->first % 4 == 0 && a->ld >= 0 && a->ld % 4 == 0);
    if (a->n_rows == 0 || a->n_cols == 0) return BS_STATUS_OK;
    REQUIRE("random_fill", a->out && (uintptr_t)a->out % 8 == 0 && a->row_bytes % 8 == 0);
    REQUIRE("random_fill", a->row_bytes >= 2 * (size_t)a->n_cols);
    return stream->device->backend->random_fill(stream, a);
}

bs_status bs_op_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink)
{
    REQUIRE("stream_read", bytes % 16 == 0 && sink && (bytes == 0 || data) && (uintptr_t)data % 16 == 0);
    return bytes == 0 ? BS_STATUS_OK : stream->device->backend->stream_read(stream, data, bytes, sink);
}

bool bs_sampling_needs_all(const bs_sampling *sampling)
{
    if (!(sampling->temperature > 0)) return false;
    return sampling->top_k == 0 || sampling->top_k > BS_MAX_CANDIDATES || sampling->top_p < 1 ||
           sampling->min_p > 0;
}
