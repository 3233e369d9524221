/* ops_cache.c: the cache and attention ops of kernels.h: arguments are checked here, once for every device,
 * then the device's own function runs. */
#include "kernels/ops_check.h"

static bool pools_fit(const bs_kv_pools *p)
{
    if (!p || !p->shape) return false;
    const bs_kv_shape *s = p->shape;
    return s->n_layers > 0 && s->n_kv_heads > 0 && (s->head_dim == 64 || s->head_dim == 128) &&
           (p->n_f16_slots == 0 || p->f16_pool) && (p->n_quant_slots == 0 || p->quant_pool);
}

bs_status bs_kv_slot_bytes(const bs_device *device, const bs_kv_shape *shape, size_t *f16_slot_bytes,
                           size_t *quant_slot_bytes)
{
    return device->backend->slot_bytes(device, shape, f16_slot_bytes, quant_slot_bytes);
}

bs_status bs_op_rope_table(bs_stream *stream, const bs_rope_table_args *a)
{
    REQUIRE("rope_table",
            a->n_tokens >= 0 && a->n_rot >= 0 && a->n_rot % 2 == 0 && a->n_rot <= BS_MAX_HEAD_DIM);
    if (a->n_tokens == 0 || a->n_rot == 0) return BS_STATUS_OK;
    REQUIRE("rope_table", a->positions && a->inv_freq && a->cos_sin);
    return stream->device->backend->rope_table(stream, a);
}

bs_status bs_op_append(bs_stream *stream, const bs_append_args *a)
{
    REQUIRE("append", pools_fit(a->pools) && a->layer >= 0 && a->layer < a->pools->shape->n_layers);
    REQUIRE("append", a->n_tokens >= 0 && a->n_heads > 0 && a->n_heads % a->pools->shape->n_kv_heads == 0);
    if (a->n_tokens == 0) return BS_STATUS_OK;
    REQUIRE("append", a->q && a->k && a->v && a->f16_slot && a->page_token && is_act(stream, a->act));
    REQUIRE("append", a->q_ld >= (int64_t)a->n_heads * a->pools->shape->head_dim);
    REQUIRE("append", a->kv_ld >= (int64_t)a->pools->shape->n_kv_heads * a->pools->shape->head_dim);
    REQUIRE("append", a->n_rot >= 0 && a->n_rot % 2 == 0 && a->n_rot <= a->pools->shape->head_dim);
    REQUIRE("append", a->n_rot == 0 || a->cos_sin);
    return stream->device->backend->append(stream, a);
}

bs_status bs_op_quantize(bs_stream *stream, const bs_quantize_args *a)
{
    REQUIRE("quantize", pools_fit(a->pools) && a->n_pages >= 0 && a->pools->shape->format.k_bits < 16);
    if (a->n_pages == 0) return BS_STATUS_OK;
    REQUIRE("quantize", a->f16_slot && a->quant_slot && a->pools->f16_pool && a->pools->quant_pool);
    return stream->device->backend->quantize(stream, a);
}

static bs_status check_pack(const bs_pack_args *a)
{
    REQUIRE("pack", pools_fit(a->pools) && a->n >= 0 && (a->n == 0 || a->pages));
    uint32_t slots = a->quantized ? a->pools->n_quant_slots : a->pools->n_f16_slots;
    for (int i = 0; i < a->n; i++) {
        const bs_kv_page_ref *p = &a->pages[i];
        REQUIRE("pack", p->slot < slots && p->layer >= 0 && p->layer < a->pools->shape->n_layers);
        REQUIRE("pack", p->kv_head >= 0 && p->kv_head < a->pools->shape->n_kv_heads);
        REQUIRE("pack", a->quantized || (!p->k_meta && !p->v_meta));
    }
    return BS_STATUS_OK;
}

bs_status bs_op_pack(bs_stream *stream, const bs_pack_args *a)
{
    BS_TRY(check_pack(a));
    return stream->device->backend->pack(stream, a);
}

bs_status bs_op_unpack(bs_stream *stream, const bs_pack_args *a)
{
    BS_TRY(check_pack(a));
    return stream->device->backend->unpack(stream, a);
}

bs_status bs_op_clear_slots(bs_stream *stream, const bs_clear_slots_args *a)
{
    REQUIRE("clear_slots", pools_fit(a->pools) && a->n >= 0 && (a->n == 0 || a->slot));
    return a->n == 0 ? BS_STATUS_OK : stream->device->backend->clear_slots(stream, a);
}

bs_status bs_op_random_page(bs_stream *stream, const bs_random_page_args *a)
{
    REQUIRE("random_page", pools_fit(a->pools) && a->slot < a->pools->n_f16_slots);
    REQUIRE("random_page", a->page >= 0 && a->page <= INT32_MAX && a->first_kv_head >= 0);
    return stream->device->backend->random_page(stream, a);
}

bs_status bs_op_attend(bs_stream *stream, const bs_attend_args *a)
{
    REQUIRE("attend", pools_fit(a->pools) && a->layer >= 0 && a->layer < a->pools->shape->n_layers);
    REQUIRE("attend", a->n_heads > 0 && a->n_heads % a->pools->shape->n_kv_heads == 0);
    REQUIRE("attend", a->max_seqs >= 0 && a->max_tokens >= 0 && a->max_pages >= 0 && a->window >= 0);
    if (a->max_seqs == 0 || a->max_tokens == 0) return BS_STATUS_OK;
    REQUIRE("attend", a->q && (a->o || a->attended) && a->lse && is_act(stream, a->act));
    REQUIRE("attend", a->q_ld >= (int64_t)a->n_heads * a->pools->shape->head_dim);
    REQUIRE("attend",
            a->q_start && a->q_pos0 && a->page_start && a->n_sink && a->n_quant && a->n_f16 && a->n_tokens);
    REQUIRE("attend", a->max_pages == 0 || (a->page_slot && a->page_index));
    REQUIRE("attend",
            a->workspace_bytes >= bs_attend_workspace_bytes(stream->device, a->pools->shape, a->n_heads,
                                                            a->max_seqs, a->max_tokens, a->max_pages));
    if (a->attended && !bs_attend_turns(stream->device, a))
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "attend: %s does not turn O to %s with %d tokens of %d sequences",
                       stream->device->info.name, bs_type_name(a->attended_type), a->max_tokens, a->max_seqs);
    return stream->device->backend->attend(stream, a);
}

bool bs_attend_turns(const bs_device *device, const bs_attend_args *a)
{
    return device->backend->attend_turns && device->backend->attend_turns(device, a);
}

size_t bs_attend_workspace_bytes(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                                 int max_tokens, int max_pages)
{
    return device->backend->attend_workspace(device, shape, n_heads, max_seqs, max_tokens, max_pages);
}

bs_status bs_op_merge(bs_stream *stream, const bs_merge_args *a)
{
    REQUIRE("merge", a->n_parts >= 1 && a->n_rows >= 0 && a->dim > 0);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("merge", a->o && a->lse && a->o_out);
    return stream->device->backend->merge(stream, a);
}

bs_status bs_op_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *a)
{
    REQUIRE("merge_weigh", a->n_rows >= 0 && a->dim > 0);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("merge_weigh", a->o && a->lse && a->lse_max && a->out);
    return stream->device->backend->merge_weigh(stream, a);
}

bs_status bs_op_merge_finish(bs_stream *stream, const bs_merge_finish_args *a)
{
    REQUIRE("merge_finish", a->n_rows >= 0 && a->dim > 0);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("merge_finish", a->sum && a->lse_max && a->o);
    return stream->device->backend->merge_finish(stream, a);
}

bs_status bs_op_merge_fold(bs_stream *stream, const bs_merge_fold_args *a)
{
    REQUIRE("merge_fold",
            a->n_parts >= 1 && a->part >= 0 && a->part < a->n_parts && a->n_rows >= 0 && a->dim > 0);
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("merge_fold", a->lse_all && a->o);
    return stream->device->backend->merge_fold(stream, a);
}

bs_status bs_op_unrotate(bs_stream *stream, const bs_unrotate_args *a)
{
    REQUIRE("unrotate", a->n_rows >= 0 && a->dim > 0 && (!a->hadamard || (a->dim & (a->dim - 1)) == 0));
    if (a->n_rows == 0) return BS_STATUS_OK;
    REQUIRE("unrotate", a->o && a->out && is_act(stream, a->act));
    return stream->device->backend->unrotate(stream, a);
}
