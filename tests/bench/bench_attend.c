/* bench_attend.c: attention on CPUs: bytes and elements a second of decode steps, GFLOP/s of prefill chunks.
 *
 *   bench_attend [auto|scalar|avx2|avx512 [threads]]
 *
 * A case is a cache of several layers, more bytes than the last-level cache where f16 allows it; a decode
 * step attends layer after layer, as a model does, so every byte comes from where it would come from there.
 * Checked first: layer 0 against the scalar kernels. The time is the median of the steps of about half a
 * second; in the window is bs_op_attend alone. "of read" is the share of a streaming read measured in the
 * same run on one thread times the threads; "of sgemm" that of a 768³ product by the CBLAS, where there is
 * one.
 */
#include "config.h"

#include "kernels/kernels.h"
#include "tests/tolerances.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { MAX_REPEATS = 200, PAGE = BS_PAGE_TOKENS };

typedef struct shape {
    const char *name;
    int n_layers, n_kv_heads, group, dim;
    int n_tokens, n_query; /* cached, the query tokens included */
} shape;

typedef struct bench {
    const shape *shape;
    bs_device *device, *scalar;
    bs_stream *stream, *scalar_stream;
    bs_kv_shape kv;
    bs_kv_pools pools;
    bs_buffer *f16, *quant;
    int32_t n_pages, *index;
    uint32_t *slot;
    float *q, *o, *lse;
    void *workspace;
} bench;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void must(bs_status status)
{
    if (status == BS_STATUS_OK) return;
    fprintf(stderr, "bench_attend: %s\n", bs_error_message());
    exit(1);
}

static float noise(void)
{
    static uint32_t seed = 1;
    float sum = 0;
    for (int i = 0; i < 3; i++) sum += (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
    return sum;
}

/* ---- rooflines ---- */

static double read_bandwidth(void)
{
    const size_t n = (size_t)32 << 20;
    uint64_t *x = malloc(n * sizeof *x), lanes[16] = {0};
    if (!x) return 0;
    memset(x, 1, n * sizeof *x);
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = seconds();
        for (size_t i = 0; i < n; i += 16)
            for (int j = 0; j < 16; j++) lanes[j] += x[i + (size_t)j];
        double rate = (double)(n * sizeof *x) / (seconds() - start);
        if (rate > best) best = rate;
    }
    for (int j = 1; j < 16; j++) lanes[0] += lanes[j];
    free(x);
    return lanes[0] == 42 ? 0 : best; /* the sum is used, so the reads happen */
}

static double sgemm_rate(int n_threads)
{
#ifdef HAVE_OPENBLAS
    const int n = 768;
    float *a = calloc((size_t)(3 * n * n), sizeof *a);
    double best = 0;
    openblas_set_num_threads(n_threads);
    for (int repeat = 0; a && repeat < 5; repeat++) {
        double start = seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, a, n, a + n * n, n, 0,
                    a + 2 * n * n, n);
        double rate = 2.0 * n * n * n / (seconds() - start);
        if (rate > best) best = rate;
    }
    free(a);
    return best;
#else
    return 0;
#endif
}

/* ---- a case ---- */

static void fill_pages(bench *b, bool quantized)
{
    const int dim = b->kv.head_dim;
    bs_f16 *values = malloc((size_t)(2 * PAGE * dim) * sizeof *values);
    for (int32_t p = 0; p < b->n_pages; p++) {
        uint32_t from = quantized ? 0 : (uint32_t)p, to = (uint32_t)p;
        for (int part = 0; part < b->kv.n_layers * b->kv.n_kv_heads; part++) {
            for (int i = 0; i < 2 * PAGE * dim; i++) values[i] = bs_f32_to_f16(noise());
            bs_kv_page_ref ref = {.slot = from,
                                  .layer = part / b->kv.n_kv_heads,
                                  .kv_head = part % b->kv.n_kv_heads,
                                  .k = values,
                                  .v = values + PAGE * dim};
            must(bs_op_unpack(b->stream, &(bs_pack_args){.pools = &b->pools, .n = 1, .pages = &ref}));
        }
        if (quantized)
            must(bs_op_quantize(
                b->stream,
                &(bs_quantize_args){.pools = &b->pools, .n_pages = 1, .f16_slot = &from, .quant_slot = &to}));
    }
    free(values);
}

static void attend(const bench *b, bs_stream *stream, int layer)
{
    const shape *s = b->shape;
    const bool quantized = b->kv.format.k_bits < 16;
    const int32_t zero = 0, pos0 = s->n_tokens - s->n_query;
    const int32_t q_start[2] = {0, s->n_query}, page_start[2] = {0, b->n_pages};
    const int n_heads = s->n_kv_heads * s->group;
    bs_attend_args args = {
        .pools = &b->pools,
        .layer = layer,
        .max_seqs = 1,
        .max_tokens = s->n_query,
        .max_pages = b->n_pages,
        .n_heads = n_heads,
        .q = b->q,
        .q_ld = (int64_t)n_heads * s->dim,
        .act = BS_TYPE_F32,
        .q_start = q_start,
        .q_pos0 = &pos0,
        .page_start = page_start,
        .page_slot = b->slot,
        .page_index = b->index,
        .n_sink = &zero,
        .n_quant = quantized ? &b->n_pages : &zero,
        .n_f16 = quantized ? &zero : &b->n_pages,
        .n_tokens = &s->n_tokens,
        .scale = 1 / sqrtf((float)s->dim),
        .workspace = b->workspace,
        .workspace_bytes = bs_attend_workspace_bytes(b->device, &b->kv, n_heads, 1, s->n_query, b->n_pages),
        .o = b->o,
        .lse = b->lse,
    };
    must(bs_op_attend(stream, &args));
}

/* Worst row of a few against the scalar kernels. */
static void check(const bench *b)
{
    const size_t rows = (size_t)(b->shape->n_query * b->shape->n_kv_heads * b->shape->group),
                 dim = (size_t)b->kv.head_dim;
    float *o = malloc(rows * dim * sizeof *o);
    attend(b, b->stream, 0);
    memcpy(o, b->o, rows * dim * sizeof *o);
    attend(b, b->scalar_stream, 0);
    for (size_t r = 0; r < rows; r++) {
        double error = 0, norm = 0;
        for (size_t i = r * dim; i < (r + 1) * dim; i++) {
            error += pow((double)o[i] - b->o[i], 2);
            norm += pow(b->o[i], 2);
        }
        if (!(sqrt(error / norm) <= TOL_ATTEND_O)) {
            fprintf(stderr, "bench_attend: row %zu is off by %g\n", r, sqrt(error / norm));
            exit(1);
        }
    }
    free(o);
}

static void open_case(bench *b, const bs_kv_format *format)
{
    const shape *s = b->shape;
    b->kv = (bs_kv_shape){s->n_layers, s->n_kv_heads, s->dim, *format};
    b->n_pages = (s->n_tokens + PAGE - 1) / PAGE;
    const bool quantized = format->k_bits < 16;
    size_t f16_bytes, quant_bytes, rows = (size_t)(s->n_query * s->n_kv_heads * s->group);
    must(bs_kv_slot_bytes(b->device, &b->kv, &f16_bytes, &quant_bytes));
    uint32_t n_f16 = quantized ? 1 : (uint32_t)b->n_pages, n_quant = quantized ? (uint32_t)b->n_pages : 0;
    must(bs_buffer_alloc(b->device, n_f16 * f16_bytes, "f16 pool", &b->f16));
    must(bs_buffer_alloc(b->device, n_quant * quant_bytes + 64, "quantized pool", &b->quant));
    b->pools = (bs_kv_pools){&b->kv, bs_buffer_at(b->f16, 0), bs_buffer_at(b->quant, 0), n_f16, n_quant};
    b->slot = calloc((size_t)b->n_pages, sizeof *b->slot);
    b->index = calloc((size_t)b->n_pages, sizeof *b->index);
    for (int32_t p = 0; p < b->n_pages; p++) b->slot[p] = (uint32_t)(b->index[p] = p);
    b->q = malloc(rows * (size_t)s->dim * sizeof *b->q);
    b->o = malloc(rows * (size_t)s->dim * sizeof *b->o);
    b->lse = malloc(rows * sizeof *b->lse);
    b->workspace = calloc(
        1, bs_attend_workspace_bytes(b->device, &b->kv, s->n_kv_heads * s->group, 1, s->n_query, b->n_pages));
    for (size_t i = 0; i < rows * (size_t)s->dim; i++) b->q[i] = noise();
    fill_pages(b, quantized);
}

static void close_case(bench *b)
{
    bs_buffer_free(b->f16);
    bs_buffer_free(b->quant);
    free(b->slot);
    free(b->index);
    free(b->q);
    free(b->o);
    free(b->lse);
    free(b->workspace);
}

/* Stored bytes of K and V of one token and KV head, parameters counted. */
static double token_bytes(const bs_kv_shape *kv)
{
    bs_kv_page_bytes p = bs_kv_canonical_bytes(&kv->format, kv->head_dim);
    return (double)(kv->format.k_bits == 16 ? p.f16 : p.k + p.k_meta + p.v + p.v_meta) / PAGE;
}

static void run_case(bench *b, const char *name, const bs_kv_format *format, double read, double sgemm)
{
    const shape *s = b->shape;
    double times[MAX_REPEATS], total = 0;
    int n = 0;
    open_case(b, format);
    check(b);
    for (int layer = 0; layer < s->n_layers; layer++) attend(b, b->stream, layer);
    while (n < 5 || (n < MAX_REPEATS && total < 0.5)) {
        double start = seconds();
        for (int layer = 0; layer < s->n_layers; layer++) attend(b, b->stream, layer);
        total += times[n++] = seconds() - start;
    }
    qsort(times, (size_t)n, sizeof *times, by_value);
    double median = times[n / 2], heads = (double)s->n_layers * s->n_kv_heads;
    double bytes = heads * s->n_tokens * token_bytes(&b->kv), elements = heads * s->n_tokens * 2 * s->dim;
    double pairs = (double)s->n_query * (s->n_tokens - (s->n_query - 1) / 2.0); /* (query, token) that meet */
    double flops = heads * s->group * pairs * 4 * s->dim;
    printf("%-12s %-16s %9.3f %9.3f %9.3f %8.1f %7.2f %6.0f%% %8.2f %8.1f", s->name, name, times[0] * 1e3,
           median * 1e3, times[n - 1 - n / 10] * 1e3, bytes * 1e-6, bytes / median * 1e-9,
           100 * bytes / median / read, elements / median * 1e-9, flops / median * 1e-9);
    if (sgemm > 0) printf(" %6.0f%%", 100 * flops / median / sgemm);
    printf("\n");
    fflush(stdout);
    close_case(b);
}

int main(int argc, char **argv)
{
    static const char *const isa_names[] = {"auto", "scalar", "avx2", "avx512"};
    static const shape shapes[] = {
        {"smollm2 6K", 30, 3, 3, 64, 6016, 1},    {"8B-like 32K", 2, 2, 4, 128, 32768, 1},
        {"MHA 8K", 4, 4, 1, 128, 8192, 1},        {"prefill 6K", 1, 3, 3, 64, 6144, 2048},
        {"prefill 4K", 1, 1, 4, 128, 4096, 1024},
    };
    static const struct {
        const char *name;
        bs_kv_format format;
    } formats[] = {
        {"f16", {.k_bits = 16, .v_bits = 16}},
        {"int8", {.k_bits = 8, .v_bits = 8, .k_per_channel = true, .group = 128}},
        {"int4", {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128}},
        {"int4:kt:g32", {.k_bits = 4, .v_bits = 4, .group = 32}},
        {"k4v2:norm", {.k_bits = 4, .v_bits = 2, .k_per_channel = true, .group = 128, .k_norm = true}},
        {"int2:g32:norm", {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32, .k_norm = true}},
        {"int2:g128", {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 128}},
    };
    bs_device_config config = {.n_threads = argc > 2 ? atoi(argv[2]) : 1};
    for (int i = 0; argc > 1 && i < 4; i++)
        if (strcmp(argv[1], isa_names[i]) == 0) config.isa = (bs_isa)i;
    bench b = {0};
    must(bs_device_open(&config, &b.device));
    must(bs_stream_create(b.device, &b.stream));
    config.isa = BS_ISA_SCALAR;
    must(bs_device_open(&config, &b.scalar));
    must(bs_stream_create(b.scalar, &b.scalar_stream));
    double read = read_bandwidth() * config.n_threads, sgemm = sgemm_rate(config.n_threads);
    printf("%s\nread %.1f GB/s, sgemm %.0f GFLOP/s\n", bs_device_get_info(b.device)->name, read * 1e-9,
           sgemm * 1e-9);
    printf("%-12s %-16s %9s %9s %9s %8s %7s %7s %8s %8s %7s\n", "shape", "format", "best ms", "median", "p90",
           "MB", "GB/s", "of read", "Gelem/s", "GFLOP/s", "of sgemm");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            b.shape = &shapes[i];
            run_case(&b, formats[f].name, &formats[f].format, read, sgemm);
        }
    bs_stream_destroy(b.stream);
    bs_stream_destroy(b.scalar_stream);
    bs_device_close(b.device);
    bs_device_close(b.scalar);
    return 0;
}
