/* quantize.c: quantizes whole f16 pages: looks for NaN and infinity, then hands each (page, layer, KV head)
 * to the device's instruction set. A part with a fault is left alone; the step fails at bs_stream_check. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fault.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/quantize.h"

typedef struct quantizer {
    bs_cpu_quantize_k_fn *k;
    bs_cpu_quantize_v_fn *v;
} quantizer;

static quantizer quantizer_of(bs_isa isa)
{
#if defined(__x86_64__)
    if (isa == BS_ISA_AVX512) return (quantizer){bs_cpu_quantize_k_avx512, bs_cpu_quantize_v_avx512};
    if (isa == BS_ISA_AVX2) return (quantizer){bs_cpu_quantize_k_avx2, bs_cpu_quantize_v_avx2};
#endif
    return (quantizer){bs_cpu_quantize_k_scalar, bs_cpu_quantize_v_scalar};
}

static int first_bad_token(const bs_f16 *page, int head_dim)
{
    int token = 0;
    while (bs_cpu_all_finite(page + token * head_dim, (size_t)head_dim)) token++;
    return token;
}

static void quantize_head(bs_stream *stream, const bs_cpu_kv_layout *l, const bs_quantize_args *args,
                          int page, int layer, int kv_head)
{
    const quantizer q = quantizer_of(stream->device->info.isa);
    const bs_kv_pools *pools = args->pools;
    const uint32_t slot = args->f16_slot[page];
    uint8_t *record = bs_cpu_quant_record(l, pools->quant_pool, args->quant_slot[page], layer, kv_head);
    for (int is_v = 0; is_v < 2; is_v++) {
        const bs_f16 *part = bs_cpu_f16_page(l, pools->f16_pool, slot, layer, kv_head, is_v);
        if (!bs_cpu_all_finite(part, l->f16_part_bytes / sizeof *part))
            bs_cpu_fault_set(stream, layer, kv_head, slot, first_bad_token(part, l->head_dim), is_v);
        else if (is_v) q.v(l, pools->shape->format.v_encoder, part, record);
        else q.k(l, part, record);
    }
}

typedef struct quantize_job {
    bs_stream *stream;
    const bs_quantize_args *args;
    bs_cpu_kv_layout layout;
} quantize_job;

/* A part is one layer of one page. */
static void quantize_layer(void *context, int part)
{
    quantize_job *job = context;
    const bs_cpu_kv_layout *l = &job->layout;
    for (int h = 0; h < l->n_kv_heads; h++)
        quantize_head(job->stream, l, job->args, part / l->n_layers, part % l->n_layers, h);
}

bs_status bs_cpu_quantize(bs_stream *stream, const bs_quantize_args *args)
{
    quantize_job job = {stream, args, bs_cpu_kv_layout_of(args->pools->shape)};
    bs_pool_run(bs_stream_pool(stream), args->n_pages * job.layout.n_layers, quantize_layer, &job);
    return BS_STATUS_OK;
}
