/* cost.c: the cost table: sustained rates of a kind of machine, rounded down to one figure. They need not be
 * right to cut a prompt well, only to stay the same. */
#include "src/engine/cost.h"
#include "src/base/checked.h"

/* A chunk is not cut below this for time: there the weights' bytes dominate, and shorter would hardly be
 * faster. */
enum { MIN_CHUNK = 16 };

typedef struct rates {
    double bytes_per_ms;  /* reading weights */
    double dense_per_ms;  /* floating-point operations of GEMMs, with dequantization */
    double attend_per_ms; /* and of attention over a quantized cache */
} rates;

static const rates scalar_core = {1e6, 1e6, 0.5e6};
/* One Zen 5 core, Q4_1 weights: GEMM of 64 tokens 65 and 106 GFLOP/s, attention of 64 over 2,048 tokens 109
 * and 209. */
static const rates avx2_core = {5e6, 60e6, 100e6};
static const rates avx512_core = {8e6, 100e6, 200e6};
/* One H200, bf16: GEMMs of 2,048 tokens 730 TFLOP/s, chunks of them with all that is around 570; attention of 2,048 over
 * 128K 545, of 256 over 32K 430. */
static const rates gpu = {3e9, 600e9, 500e9};

bs_cost bs_cost_of(const bs_model_desc *desc, const bs_device_info *device, int n_ranks)
{
    const rates *r = device->kind == BS_DEVICE_CUDA ? &gpu
                     : device->isa == BS_ISA_SCALAR ? &scalar_core
                     : device->isa == BS_ISA_AVX512 ? &avx512_core
                                                    : &avx2_core;
    double units = (device->kind == BS_DEVICE_CPU ? device->n_threads : 1) * (double)n_ranks;
    double pair = 4.0 * desc->n_layers * desc->n_heads * desc->head_dim;
    return (bs_cost){
        .step_ms = (double)desc->file_bytes / (r->bytes_per_ms * units),
        .token_ms = 2.0 * (double)desc->n_params / (r->dense_per_ms * units),
        .pair_ms = pair / (r->attend_per_ms * units),
    };
}

double bs_cost_tokens_ms(const bs_cost *cost, int n_tokens, int64_t context)
{
    return n_tokens * (cost->token_ms + cost->pair_ms * (double)context);
}

double bs_cost_share(const bs_cost *cost, int64_t position, int64_t n_done, int64_t n_tokens)
{
    const double first = (double)position, done = (double)n_done, all = (double)n_tokens;
    if (n_done >= n_tokens) return 1;
    return done * (cost->token_ms + cost->pair_ms * (first + done / 2)) /
           (all * (cost->token_ms + cost->pair_ms * (first + all / 2)));
}

int bs_cost_cut(const bs_cost *cost, int64_t pos, int chunk_tokens, int max_tokens, double max_ms)
{
    int64_t chunk_end = (pos / chunk_tokens + 1) *
                        chunk_tokens; /* of the chunk that holds pos: one size in all of it */
    int64_t size = 1;
    while (size * 2 <= bs_min_i64(max_tokens, chunk_tokens) &&
           (size * 2 <= MIN_CHUNK ||
            cost->step_ms + bs_cost_tokens_ms(cost, (int)size * 2, chunk_end) <= max_ms))
        size *= 2;
    return (int)(bs_min_i64((pos / size + 1) * size, chunk_end) - pos);
}
