/* bench_cases.c: which cases there are, and which were asked for.
 *
 * The GPU's list is the one that the project's targets are stated for: batch x query heads / KV heads x
 * context, groups of 128 unless the name says otherwise. The CPU's is small enough for a laptop. Shapes
 * beyond them come from the options. */
#include "config.h"

#include "src/cli/bench.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define Ki 1024
#define Mi (1024 * 1024)

/* int2 by groups of 128 is what the speed targets count with; by itself int2 means g32, rotated and normed.
 */
#define INT2 "int2:g128:nohad:nonorm"

#define ATTEND(b, hq, hkv, s, t, d, kv)                                                                      \
    {                                                                                                        \
        BS_BENCH_ATTEND, b, hq, hkv, d, s, false, false, t, 0, 0, kv, 0, 0, 0                                \
    }
#define BOTH(b, hq, hkv, s) ATTEND(b, hq, hkv, s, 1, 128, "int4"), ATTEND(b, hq, hkv, s, 1, 128, INT2)
#define RAGGED(b, hq, hkv, sum, kv)                                                                          \
    {                                                                                                        \
        BS_BENCH_ATTEND, b, hq, hkv, 128, sum, true, false, 1, 0, 0, kv, 0, 0, 0                             \
    }
#define QUANTIZE(tokens, heads, layers, plain, kv)                                                           \
    {                                                                                                        \
        BS_BENCH_QUANTIZE, 1, heads, heads, 128, tokens, false, plain, 0, 0, layers, kv, 0, 0, 0             \
    }
#define GEMV(rows, cols, weights, tokens)                                                                    \
    {                                                                                                        \
        BS_BENCH_GEMV, .n_query = (tokens), .type = BS_TYPE_##weights, .n_rows = (rows), .n_cols = (cols)    \
    }
/* The matrices of Llama-3.1-8B. */
#define GEMV_8B(tokens)                                                                                      \
    GEMV(4096, 4096, BF16, tokens), GEMV(1024, 4096, BF16, tokens), GEMV(14336, 4096, BF16, tokens),         \
        GEMV(4096, 14336, BF16, tokens), GEMV(128256, 4096, BF16, tokens)
/* A chunk of t query tokens behind s cached ones. */
#define CHUNK(s, t, kv) ATTEND(1, 32, 8, (s) + (t), t, 128, kv)
#define CHUNKS(s, t)    CHUNK(s, t, "int4"), CHUNK(s, t, "int2")
#define READ(bytes)                                                                                          \
    {                                                                                                        \
        BS_BENCH_READ, .context = (bytes)                                                                    \
    }

/* clang-format off */
static const bs_bench_case gpu_cases[] = {
    READ(64 * Mi), READ(256 * Mi), READ((int64_t)4096 * Mi),
    BOTH(1, 32, 8, 8 * Ki), BOTH(1, 32, 8, 32 * Ki), BOTH(1, 32, 8, 128 * Ki), BOTH(1, 32, 8, Mi),
    BOTH(8, 32, 8, 32 * Ki), BOTH(8, 32, 8, 128 * Ki), BOTH(20, 32, 8, 16 * Ki),
    BOTH(1, 32, 32, 128 * Ki), BOTH(1, 64, 8, Mi),
    RAGGED(64, 32, 8, Mi, "int4"), RAGGED(64, 32, 8, Mi, INT2),
    ATTEND(1, 32, 8, Mi, 1, 128, "f16"), ATTEND(1, 32, 8, Mi, 1, 128, "int8"),
    ATTEND(1, 32, 8, Mi, 1, 128, "k8v4:g128:nohad:nonorm"), ATTEND(1, 32, 8, Mi, 1, 128, "k4v2"),
    ATTEND(1, 32, 8, Mi, 1, 128, "int2"), ATTEND(1, 32, 8, Mi, 1, 128, "int4:g32:had:norm"),
    ATTEND(1, 32, 8, Mi, 1, 128, "int4:kt"), ATTEND(1, 32, 8, Mi, 1, 128, "int2:kt:g128:nohad:nonorm"),
    ATTEND(1, 32, 8, Mi, 1, 64, "int4"), ATTEND(1, 32, 8, Mi, 1, 64, INT2),
    ATTEND(1, 32, 8, Mi, 4, 128, "int4"), ATTEND(1, 32, 8, Mi, 4, 128, INT2),
    QUANTIZE(128 * Ki, 8, 1, false, "int4"), QUANTIZE(128 * Ki, 8, 1, false, "int2"),
    QUANTIZE(128 * Ki, 8, 1, true, "int2"), QUANTIZE(128 * Ki, 8, 1, false, "k4v2"),
    QUANTIZE(128, 8, 1, false, "int4"), QUANTIZE(128, 8, 1, false, "int2"),
    QUANTIZE(128, 8, 32, false, "int4"), QUANTIZE(128, 8, 32, false, "int2"),
    GEMV_8B(1), GEMV_8B(4), GEMV_8B(16), GEMV(4096, 4096, F16, 1), GEMV(128, 4096, BF16, 1), GEMV(512, 8192, BF16, 1),
    CHUNKS(0, 2048), CHUNKS(8 * Ki, 2048), CHUNKS(32 * Ki, 2048), CHUNKS(128 * Ki, 2048), CHUNKS(512 * Ki, 2048),
    CHUNKS(Mi, 2048), CHUNK(128 * Ki, 2048, "f16"), CHUNK(128 * Ki, 2048, "int8"), CHUNK(128 * Ki, 2048, "k4v2"),
    CHUNKS(128 * Ki, 512), CHUNKS(128 * Ki, 64), CHUNKS(128 * Ki, 17),
};

static const bs_bench_case cpu_cases[] = {
    READ(256 * Mi),
    ATTEND(1, 32, 8, 8 * Ki, 1, 128, "f16"), ATTEND(1, 32, 8, 8 * Ki, 1, 128, "int8"),
    BOTH(1, 32, 8, 8 * Ki), ATTEND(1, 32, 8, 8 * Ki, 1, 128, "int2"), ATTEND(1, 32, 8, 8 * Ki, 4, 128, "int4"),
    RAGGED(16, 32, 8, 16 * Ki, "int4"),
    QUANTIZE(4 * Ki, 8, 1, false, "int4"), QUANTIZE(4 * Ki, 8, 1, false, "int2"), QUANTIZE(4 * Ki, 8, 1, true, "int2"),
    QUANTIZE(128, 8, 32, false, "int4"),
    GEMV(1536, 576, Q4_1, 1), GEMV(576, 1536, Q4_1, 1), GEMV(49152, 576, Q8_0, 1),
    GEMV(4096, 4096, Q4_1, 1), GEMV(4096, 4096, Q4_1, 2), GEMV(4096, 4096, Q4_1, 4), GEMV(4096, 4096, Q4_1, 8),
    GEMV(4096, 4096, Q4_0, 1), GEMV(4096, 4096, Q5_0, 1), GEMV(4096, 4096, Q5_1, 1), GEMV(4096, 4096, Q8_0, 1),
    GEMV(4096, 4096, MXFP4, 1), GEMV(4096, 4096, Q2_K, 1), GEMV(4096, 4096, Q3_K, 1), GEMV(4096, 4096, Q4_K, 1),
    GEMV(4096, 4096, Q5_K, 1), GEMV(4096, 4096, Q6_K, 1), GEMV(4096, 4096, F16, 1),
};
/* clang-format on */

const char *bs_bench_op_name(bs_bench_op op)
{
    static const char *const names[] = {"attend", "quantize", "gemv", "read"};
    return names[op];
}

/* "1M", "128K", "1000". */
static void count_name(int64_t n, char *name, size_t bytes)
{
    static const char suffixes[] = {0, 'K', 'M', 'G', 0};
    int power = 0;
    while (power < 3 && n >= Ki && n % Ki == 0) {
        n /= Ki;
        power++;
    }
    snprintf(name, bytes, "%lld%c", (long long)n, suffixes[power] ? suffixes[power] : '\0');
}

void bs_bench_shape_name(const bs_bench_case *c, char name[BS_BENCH_SHAPE_NAME])
{
    char count[24], more[32] = "";
    count_name(c->context, count, sizeof count);
    if (c->op == BS_BENCH_READ) {
        snprintf(name, BS_BENCH_SHAPE_NAME, "%sB", count);
    } else if (c->op == BS_BENCH_GEMV) {
        if (c->n_query != 1) snprintf(more, sizeof more, " T%d", c->n_query);
        snprintf(name, BS_BENCH_SHAPE_NAME, "%lldx%lld %s%s", (long long)c->n_rows, (long long)c->n_cols,
                 bs_type_name(c->type), more);
    } else if (c->op == BS_BENCH_QUANTIZE) {
        snprintf(more, sizeof more, " L%d", c->n_layers);
        snprintf(name, BS_BENCH_SHAPE_NAME, "%sx%d%s%s", count, c->n_kv_heads, c->n_layers > 1 ? more : "",
                 c->plain_v ? " plain V" : "");
    } else {
        int n = 0;
        if (c->n_query != 1) n += snprintf(more + n, sizeof more - (size_t)n, " T%d", c->n_query);
        if (c->head_dim != 128) n += snprintf(more + n, sizeof more - (size_t)n, " D%d", c->head_dim);
        if (c->window != 0) snprintf(more + n, sizeof more - (size_t)n, " W%d", c->window);
        snprintf(name, BS_BENCH_SHAPE_NAME, "%s%dx%d/%dx%s%s", c->ragged ? "ragged " : "", c->n_seqs,
                 c->n_heads, c->n_kv_heads, count, more);
    }
}

/* ---- selection ---- */

/* One item of --case. */
static bool matches_name(const char *item, size_t bytes, const char *name, int number)
{
    char text[256], *end;
    snprintf(text, sizeof text, "%.*s", (int)(bytes < 200 ? bytes : 200), item);
    if (text[0] && text[strspn(text, "0123456789-")] == 0 && isdigit((unsigned char)text[0])) {
        long first = strtol(text, &end, 10), last = first;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        return *end == 0 && number >= first && number <= last;
    }
    return bytes > 0 && strstr(name, text) != NULL;
}

bool bs_bench_matches(const char *items, const char *name, int number)
{
    for (const char *at = items; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (matches_name(at, strcspn(at, ","), name, number)) return true;
    return false;
}

/* "attend 1x32/8x128K int4" */
static void whole_name(const void *cases, int i, char name[BS_BENCH_NAME])
{
    const bs_bench_case *c = (const bs_bench_case *)cases + i;
    char shape[BS_BENCH_SHAPE_NAME];
    bs_bench_shape_name(c, shape);
    snprintf(name, BS_BENCH_NAME, "%s %s %s", bs_bench_op_name(c->op), shape, c->kv ? c->kv : "");
}

bs_status bs_bench_check_items(const char *items, const void *cases, int n, bs_bench_namer *name_case)
{
    for (const char *at = items; at; at = strchr(at, ','), at = at ? at + 1 : NULL) {
        const size_t bytes = strcspn(at, ",");
        bool found = false;
        for (int i = 0; i < n && !found; i++) {
            char name[BS_BENCH_NAME];
            name_case(cases, i, name);
            found = matches_name(at, bytes, name, i + 1);
        }
        if (!found)
            return bs_fail(BS_STATUS_USAGE, "--case %.*s: no such case; --dry-run lists them", (int)bytes,
                           at);
    }
    return BS_STATUS_OK;
}

static bs_status select_listed(const bs_options *options, bs_device_kind kind, bs_bench_list *list)
{
    const bool gpu = kind == BS_DEVICE_CUDA;
    const bs_bench_case *all = gpu ? gpu_cases : cpu_cases;
    const int n_all = gpu ? (int)(sizeof gpu_cases / sizeof *gpu_cases)
                          : (int)(sizeof cpu_cases / sizeof *cpu_cases);
    const char *op = bs_options_n_operands(options) > 1 ? bs_options_operand(options, 1) : "all";
    const char *items = bs_options_string(options, "case");
    char name[BS_BENCH_NAME];
    BS_TRY(bs_bench_check_items(items, all, n_all, whole_name));
    list->cases = calloc((size_t)n_all, sizeof *list->cases);
    list->number = calloc((size_t)n_all, sizeof *list->number);
    if (!list->cases || !list->number)
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d cases", n_all);
    for (int i = 0; i < n_all; i++) {
        if (strcmp(op, "all") != 0 && strcmp(op, bs_bench_op_name(all[i].op)) != 0) continue;
        whole_name(all, i, name);
        if (items && !bs_bench_matches(items, name, i + 1)) continue;
        list->number[list->n] = i + 1;
        list->cases[list->n++] = all[i];
    }
    if (list->n == 0) return bs_fail(BS_STATUS_USAGE, "--case %s: not a case of %s", items, op);
    return BS_STATUS_OK;
}

/* ---- free shapes ---- */

/* What --kv changes alone it changes in the default shape; the others make a shape of their own. */
static const char *const shape_options[] = {"batch",    "heads",  "context", "tokens",
                                            "head-dim", "window", "kv"};

static const char *given_shape_option(const bs_options *options)
{
    for (size_t i = 0; i < sizeof shape_options / sizeof *shape_options; i++)
        if (bs_options_given(options, shape_options[i])) return shape_options[i];
    return NULL;
}

static bs_status read_heads(const char *text, bs_bench_case *c)
{
    int end = 0;
    if (sscanf(text, "%4d/%4d%n", &c->n_heads, &c->n_kv_heads, &end) != 2 || text[end] || c->n_kv_heads < 1 ||
        c->n_heads < c->n_kv_heads || c->n_heads % c->n_kv_heads != 0)
        return bs_fail(BS_STATUS_USAGE,
                       "--heads %s: must be query heads/KV heads, the first a multiple of the second", text);
    return BS_STATUS_OK;
}

static bs_status read_shape(const bs_options *options, bool gpu, bs_bench_case *c)
{
    *c = (bs_bench_case){.op = BS_BENCH_ATTEND,
                         .n_seqs = (int)bs_options_int(options, "batch"),
                         .head_dim = atoi(bs_options_string(options, "head-dim")),
                         .context = gpu ? 128 * Ki : 8 * Ki,
                         .n_query = (int)bs_options_int(options, "tokens"),
                         .window = (int)bs_options_int(options, "window")};
    BS_TRY(read_heads(bs_options_string(options, "heads"), c));
    if (bs_options_given(options, "context")) c->context = bs_options_int(options, "context");
    if (c->n_query > c->context)
        return bs_fail(BS_STATUS_USAGE, "--tokens %d: more than --context %lld", c->n_query,
                       (long long)c->context);
    if (c->context * c->n_seqs > INT32_MAX)
        return bs_fail(BS_STATUS_USAGE, "--context %lld: with --batch %d more than %d tokens",
                       (long long)c->context, c->n_seqs, INT32_MAX);
    return BS_STATUS_OK;
}

static bs_status select_free(const bs_options *options, const char *given, bs_device_kind kind,
                             bs_bench_list *list)
{
    const char *op = bs_options_n_operands(options) > 1 ? bs_options_operand(options, 1) : "attend";
    bs_bench_case shape;
    if (strcmp(op, "attend") != 0)
        return bs_fail(BS_STATUS_USAGE, "--%s: shapes are for attend, not for %s", given, op);
    if (bs_options_string(options, "case"))
        return bs_fail(BS_STATUS_USAGE, "--%s: not together with --case", given);
    BS_TRY(read_shape(options, kind == BS_DEVICE_CUDA, &shape));
    const char *formats = bs_options_string(options, "kv");
    size_t most = strlen(formats) + 1;
    list->text = strdup(formats);
    list->cases = calloc(most, sizeof *list->cases);
    list->number = calloc(most, sizeof *list->number);
    if (!list->text || !list->cases || !list->number)
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for its cases");
    for (char *at = list->text, *next; at; at = next) {
        bs_kv_format format;
        next = strchr(at, ',');
        if (next) *next++ = 0;
        if (bs_kv_format_parse(at, &format) != BS_STATUS_OK) {
            char line[512];
            snprintf(line, sizeof line, "%s", bs_error_message());
            bs_error_clear();
            return bs_fail(BS_STATUS_USAGE, "--kv: %s", line);
        }
        shape.kv = at;
        list->cases[list->n++] = shape;
    }
    return BS_STATUS_OK;
}

bs_status bs_bench_select(const bs_options *options, bs_device_kind kind, bs_bench_list *out)
{
    static const char *const ops[] = {"all", "attend", "quantize", "gemv", "read"};
    bs_bench_list list = {0};
    if (strcmp(bs_options_operand(options, 0), "kernel") != 0)
        return bs_fail(BS_STATUS_USAGE, "bench %s: must be kernel, decode or comm",
                       bs_options_operand(options, 0));
    if (bs_options_n_operands(options) > 1) {
        size_t i = 0;
        while (i < sizeof ops / sizeof *ops && strcmp(ops[i], bs_options_operand(options, 1)) != 0) i++;
        if (i == sizeof ops / sizeof *ops)
            return bs_fail(BS_STATUS_USAGE, "bench kernel %s: must be attend, quantize, gemv, read or all",
                           bs_options_operand(options, 1));
    }
    const char *given = given_shape_option(options);
    bs_status status = given ? select_free(options, given, kind, &list) : select_listed(options, kind, &list);
    if (status != BS_STATUS_OK) {
        bs_bench_list_free(&list);
        return status;
    }
    *out = list;
    return BS_STATUS_OK;
}

void bs_bench_list_free(bs_bench_list *list)
{
    free(list->cases);
    free(list->number);
    free(list->text);
}
