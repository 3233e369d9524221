/* attend_args.h: what the kernels of decode and of chunks take over from a call of attention as it is. */
#ifndef BS_CUDA_ATTEND_ARGS_H
#define BS_CUDA_ATTEND_ARGS_H

#include "kernels/cuda/cuda_private.h"
#include "kernels/cuda/kv_layout.h"

/* P: attend_params or chunk_params, which have these fields by the same names. Pools begin at the call's layer. */
template <typename P> static inline void attend_take_args(P &p, const bs_attend_args *a)
{
    const bs_kv_shape *shape = a->pools->shape;
    p.layout = bs_cuda_kv_layout_of(shape);
    p.quant_pool = (const uint8_t *)a->pools->quant_pool + bs_cuda_kv_record_at(&p.layout, 0, a->layer, 0);
    p.f16_pool = (const uint8_t *)a->pools->f16_pool + bs_cuda_kv_f16_at(&p.layout, 0, a->layer, 0, false);
    p.q = a->q;
    p.q_ld = a->q_ld;
    p.act = a->act;
    p.q_start = a->q_start;
    p.q_pos0 = a->q_pos0;
    p.page_start = a->page_start;
    p.page_index = a->page_index;
    p.page_slot = a->page_slot;
    p.n_sink = a->n_sink;
    p.n_quant = a->n_quant;
    p.n_f16 = a->n_f16;
    p.n_tokens = a->n_tokens;
    p.scale = a->scale;
    p.window = a->window;
    p.max_seqs = a->max_seqs;
    p.n_heads = a->n_heads;
    p.group = a->n_heads / shape->n_kv_heads;
    p.o = a->o;
    p.lse = a->lse;
}

#endif
