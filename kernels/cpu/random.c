/* random.c: random weights and random cache pages, element by element as noise.h says. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/pool.h"
#include "kernels/noise.h"

enum { ROWS_PER_PART = 16 };

typedef struct fill {
    const bs_random_fill_args *args;
    float step;
} fill;

static void fill_rows(void *context, int part)
{
    const fill *f = context;
    const bs_random_fill_args *a = f->args;
    const int64_t first = (int64_t)part * ROWS_PER_PART;
    const int64_t last = first + ROWS_PER_PART < a->n_rows ? first + ROWS_PER_PART : a->n_rows;
    for (int64_t r = first; r < last; r++) {
        uint16_t *row = (uint16_t *)((char *)a->out + (size_t)r * a->row_bytes);
        const uint64_t group = (uint64_t)(a->first + r * a->ld) / 4;
        for (int64_t c = 0; c < a->n_cols; c += 4) {
            uint32_t words[4];
            bs_noise_of_tensor(a->seed, a->tensor, group + (uint64_t)c / 4, words);
            for (int i = 0; i < 4; i++) {
                const float x = (float)bs_noise_sum(words[i]) * f->step;
                row[c + i] = a->type == BS_TYPE_F16 ? bs_f32_to_f16(x) : bs_f32_to_bf16(x);
            }
        }
    }
}

bs_status bs_cpu_random_fill(bs_stream *stream, const bs_random_fill_args *args)
{
    fill f = {args, args->std / BS_NOISE_SUM_STD};
    bs_pool_run(bs_stream_pool(stream), (int)((args->n_rows + ROWS_PER_PART - 1) / ROWS_PER_PART), fill_rows,
                &f);
    return BS_STATUS_OK;
}

typedef struct page_fill {
    const bs_random_page_args *args;
    bs_cpu_kv_layout layout;
} page_fill;

/* Part: one layer and KV head. */
static void fill_head(void *context, int part)
{
    const page_fill *f = context;
    const bs_random_page_args *a = f->args;
    const float step = 1.0f / BS_NOISE_SUM_STD;
    const int layer = part / f->layout.n_kv_heads, head = part % f->layout.n_kv_heads;
    for (int is_v = 0; is_v < 2; is_v++) {
        bs_f16 *to = bs_cpu_f16_page(&f->layout, a->pools->f16_pool, a->slot, layer, head, is_v);
        for (int i = 0; i < BS_PAGE_TOKENS * f->layout.head_dim; i += 4) {
            uint32_t words[4];
            bs_noise_of_page(a->seed, (uint32_t)a->page, (uint32_t)layer, (uint32_t)(a->first_kv_head + head),
                             (uint32_t)is_v, (uint32_t)i / 4, words);
            for (int j = 0; j < 4; j++) to[i + j] = bs_f32_to_f16((float)bs_noise_sum(words[j]) * step);
        }
    }
}

bs_status bs_cpu_random_page(bs_stream *stream, const bs_random_page_args *args)
{
    page_fill f = {args, bs_cpu_kv_layout_of(args->pools->shape)};
    bs_pool_run(bs_stream_pool(stream), f.layout.n_layers * f.layout.n_kv_heads, fill_head, &f);
    return BS_STATUS_OK;
}
