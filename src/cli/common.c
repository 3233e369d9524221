/* common.c: opening what the options name, reading text, writing to stdout. */
#include "config.h"

#include "src/cli/common.h"
#include "src/base/crc32c.h"
#include "src/base/progress.h"
#include "src/base/sha256.h"
#include "src/cache/format.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- model, device, formats
 * -------------------------------------------------------------------------------- */

bs_status bs_cli_open_model(const bs_options *options, bs_model **out)
{
    const char *path = bs_options_string(options, "model");
    if (!path) return bs_fail(BS_STATUS_USAGE, "--model FILE is needed");
    return bs_model_open(path, out);
}

const char *bs_isa_name(bs_isa isa)
{
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512"};
    return names[isa];
}

static bs_isa isa_of(const char *name)
{
    bs_isa isa = BS_ISA_AUTO;
    while (isa < BS_ISA_AVX512 && strcmp(name, bs_isa_name(isa)) != 0) isa++;
    return isa;
}

/* auto, cpu, cuda or gpu:N. */
static bs_status read_device(const char *name, int n_gpus, int rank, bs_device_config *config)
{
    const bool numbered = strncmp(name, "gpu:", 4) == 0 && strlen(name) <= 7 && name[4] &&
                          name[4 + strspn(name + 4, "0123456789")] == 0;
    const bool cuda = numbered || strcmp(name, "cuda") == 0 || (strcmp(name, "auto") == 0 && n_gpus > 0);
    if (!cuda && strcmp(name, "auto") != 0 && strcmp(name, "cpu") != 0)
        return bs_fail(BS_STATUS_USAGE, "--device %s: must be auto, cpu, cuda or gpu:N", name);
    config->kind = cuda ? BS_DEVICE_CUDA : BS_DEVICE_CPU;
    config->ordinal = numbered ? atoi(name + 4) : cuda && n_gpus > 0 ? rank % n_gpus : 0;
    return BS_STATUS_OK;
}

bs_status bs_cli_open_device(const bs_options *options, const bs_comm *comm, bs_device **out)
{
    bs_device_config config = {.n_threads = (int)bs_options_int(options, "threads"),
                               .isa = isa_of(bs_options_string(options, "isa")),
                               .memory_cap = (size_t)bs_options_int(options, "device-mem")};
    BS_TRY(read_device(bs_options_string(options, "device"), bs_device_count_gpus(),
                       comm ? bs_comm_local_rank(comm) : 0, &config));
    bs_crc32c_set_plain(config.isa == BS_ISA_SCALAR);
    bs_sha256_set_plain(config.isa == BS_ISA_SCALAR);
    return bs_device_open(&config, out);
}

bs_status bs_cli_use_transport(const bs_options *options, bs_comm *comm, bs_device *device)
{
    bs_transport transport;
    BS_TRY(bs_transport_parse(bs_options_string(options, "transport"), &transport));
    return bs_comm_use_device(comm, device, transport);
}

void bs_cli_close_device(bs_comm *comm, bs_device *device)
{
    bs_comm_leave_device(comm);
    bs_device_close(device);
}

bs_status bs_cli_choose_grid(const bs_options *options, const bs_comm *comm, const bs_model *model,
                             bs_grid *out)
{
    return bs_grid_choose(bs_comm_rank(comm), bs_comm_size(comm), bs_model_get_desc(model)->n_kv_heads,
                          bs_options_string(options, "grid"), out);
}

bs_status bs_cli_parse_format(const char *text, bs_kv_format *out)
{
    const bs_status status = bs_kv_format_parse(text, out);
    if (status == BS_STATUS_OK) return status;
    /* The parser serves the service too, and does not know of an option. */
    char line[512];
    snprintf(line, sizeof line, "%s", bs_error_message());
    bs_error_clear();
    return bs_fail(status, "--kv: %s", line);
}

bs_status bs_cli_parse_kv(const bs_options *options, const char *text, bs_kv_format *out)
{
    bs_kv_format format;
    BS_TRY(bs_cli_parse_format(text, &format));
    bool plain = strcmp(bs_options_string(options, "v-encoder"), "plain") == 0;
    format.v_encoder = plain ? BS_V_ENCODER_PLAIN : BS_V_ENCODER_BEST;
    *out = format;
    return BS_STATUS_OK;
}

bs_status bs_cli_read_kv(const bs_options *options, bs_kv_format *out)
{
    return bs_cli_parse_kv(options, bs_options_string(options, "kv"), out);
}

bs_type bs_cli_read_dtype(const bs_options *options)
{
    const char *name = bs_options_string(options, "dtype");
    return strcmp(name, "bf16") == 0 ? BS_TYPE_BF16 : strcmp(name, "f16") == 0 ? BS_TYPE_F16 : BS_TYPE_F32;
}

static const char *dtype_name(int64_t act)
{
    return act == BS_TYPE_BF16 ? "bf16" : act == BS_TYPE_F16 ? "f16" : "auto";
}

bs_status bs_cli_read_merge(const bs_options *options, bs_merge_method *out)
{
    return bs_merge_method_parse(bs_options_string(options, "merge"), out);
}

bs_sampling bs_cli_read_sampling(const bs_options *o)
{
    return (bs_sampling){.temperature = (float)bs_options_float(o, "temperature"),
                         .top_k = (int32_t)bs_options_int(o, "top-k"),
                         .top_p = (float)bs_options_float(o, "top-p"),
                         .min_p = (float)bs_options_float(o, "min-p"),
                         .repeat_penalty = (float)bs_options_float(o, "repeat-penalty"),
                         .seed = (uint64_t)bs_options_int(o, "seed")};
}

/* ---- text in
 * ------------------------------------------------------------------------------------------------ */

/* The whole file, into a buffer that doubles; a device that never ends is an error. */
static bs_status read_all(FILE *file, const char *name, char **text, size_t *bytes)
{
    const size_t most = (size_t)1 << 30;
    size_t capacity = 1 << 16, n = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        n += fread(buffer + n, 1, capacity - 1 - n, file);
        if (n < capacity - 1) break; /* the end, or an error */
        if (capacity == most) {
            free(buffer);
            return bs_fail(BS_STATUS_RANGE, "%s: more than %zu bytes of text", name, most - 2);
        }
        char *larger = realloc(buffer, capacity *= 2);
        if (!larger) free(buffer);
        buffer = larger;
    }
    if (!buffer) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its text", name);
    if (ferror(file)) {
        free(buffer);
        return bs_fail(BS_STATUS_IO, "%s: %s", name, strerror(errno));
    }
    buffer[n] = 0;
    *text = buffer;
    *bytes = n;
    return BS_STATUS_OK;
}

bs_status bs_cli_read_file(const char *option, const char *path, char **text, size_t *bytes)
{
    if (strcmp(path, "-") == 0) return read_all(stdin, "standard input", text, bytes);
    char name[512];
    snprintf(name, sizeof name, "--%s %s", option, path);
    FILE *file = fopen(path, "rb");
    if (!file) return bs_fail(BS_STATUS_IO, "%s: %s", name, strerror(errno));
    bs_status status = read_all(file, name, text, bytes);
    fclose(file);
    return status;
}

bs_status bs_cli_read_text(const bs_options *options, char **text, size_t *bytes)
{
    const char *prompt = bs_options_string(options, "prompt"),
               *path = bs_options_string(options, "prompt-file");
    if (prompt && path) return bs_fail(BS_STATUS_USAGE, "--prompt and --prompt-file: only one of them");
    if (prompt) {
        char *copy = strdup(prompt);
        if (!copy) return bs_fail(BS_STATUS_NOMEM, "--prompt: no memory for its text");
        *text = copy;
        *bytes = strlen(copy);
        return BS_STATUS_OK;
    }
    if (!path && isatty(STDIN_FILENO) == 1)
        return bs_fail(BS_STATUS_USAGE, "no text: give --prompt TEXT, --prompt-file FILE, or standard input");
    return bs_cli_read_file("prompt-file", path ? path : "-", text, bytes);
}

bs_status bs_cli_read_ids(const char *option, const char *text, int n_vocab, bs_tokens *out)
{
    const char *separators = " ,\t\r\n";
    for (const char *at = text + strspn(text, separators); *at; at += strspn(at, separators)) {
        size_t bytes = strcspn(at, separators);
        char *end;
        long id = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || end != at + bytes || id >= n_vocab)
            return bs_fail(BS_STATUS_RANGE, "--%s: '%.*s' is not an id from 0 to %d", option,
                           bytes > 40 ? 40 : (int)bytes, at, n_vocab - 1);
        BS_TRY(bs_tokens_push(out, (int32_t)id));
        at = end;
    }
    return BS_STATUS_OK;
}

/* ---- out
 * ---------------------------------------------------------------------------------------------------- */

static bs_status check_printed(FILE *file, bool good)
{
    if (good && fflush(file) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_IO, "%s: %s", file == stdout ? "standard output" : "standard error",
                   strerror(errno));
}

bs_status bs_cli_write(const void *data, size_t bytes)
{
    return check_printed(stdout, fwrite(data, 1, bytes, stdout) == bytes);
}

bs_status bs_cli_print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vprintf(format, arguments);
    va_end(arguments);
    return check_printed(stdout, n >= 0);
}

bs_status bs_cli_print_table(FILE *table, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vfprintf(table, format, arguments);
    va_end(arguments);
    return check_printed(table, n >= 0);
}

bs_status bs_cli_print_json(json_t *value)
{
    char *line = value ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    if (!line) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    bs_status status = bs_cli_print("%s\n", line);
    free(line);
    return status;
}

static void write_csv_value(FILE *file, const json_t *value)
{
    if (json_is_integer(value)) {
        fprintf(file, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        fprintf(file, "%.9g", json_real_value(value));
    } else if (json_is_string(value)) {
        fputc('"', file);
        for (const char *c = json_string_value(value); *c; c++) {
            if (*c == '"') fputc('"', file);
            fputc(*c, file);
        }
        fputc('"', file);
    }
}

bs_status bs_cli_write_csv(FILE *file, const char *path, json_t *row, bool head)
{
    const char *key, *comma = "";
    json_t *value;
    if (head) json_object_foreach(row, key, value)
        {
            fprintf(file, "%s%s", comma, key);
            comma = ",";
        }
    if (head) fputc('\n', file);
    comma = "";
    json_object_foreach(row, key, value)
    {
        fputs(comma, file);
        write_csv_value(file, value);
        comma = ",";
    }
    if (fputc('\n', file) != EOF && fflush(file) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_IO, "--csv %s: %s", path, strerror(errno));
}

/* ---- all ranks ---- */

bs_cli_ground bs_cli_ground_of(const bs_options *options, const bs_model *model, const bs_grid *grid,
                               const bs_engine_config *config)
{
    bs_cli_ground ground = {.heads = grid->heads,
                            .seq = grid->seq,
                            .merge = config->merge,
                            .act = config->act,
                            .stripe_pages = config->stripe_pages,
                            .file_bytes = bs_model_get_desc(model)->file_bytes};
    snprintf(ground.transport, sizeof ground.transport, "%s", bs_options_string(options, "transport"));
    return ground;
}

static const char where[] = "look at the environment of this machine";

static bs_status compare_engines(const bs_cli_ground *mine, const bs_cli_ground *rank0)
{
    if (mine->file_bytes != rank0->file_bytes)
        return bs_fail(BS_STATUS_MISMATCH, "--model has %llu bytes, rank 0's %llu: %s",
                       (unsigned long long)mine->file_bytes, (unsigned long long)rank0->file_bytes, where);
    if (mine->heads != rank0->heads || mine->seq != rank0->seq)
        return bs_fail(BS_STATUS_MISMATCH, "--grid is %lldx%lld, rank 0's %lldx%lld: %s",
                       (long long)mine->heads, (long long)mine->seq, (long long)rank0->heads,
                       (long long)rank0->seq, where);
    if (mine->merge != rank0->merge)
        return bs_fail(BS_STATUS_MISMATCH, "--merge is %s, rank 0's %s: %s",
                       bs_merge_method_name((bs_merge_method)mine->merge),
                       bs_merge_method_name((bs_merge_method)rank0->merge), where);
    if (mine->act != rank0->act)
        return bs_fail(BS_STATUS_MISMATCH, "--dtype is %s, rank 0's %s: %s", dtype_name(mine->act),
                       dtype_name(rank0->act), where);
    if (mine->stripe_pages != rank0->stripe_pages)
        return bs_fail(BS_STATUS_MISMATCH, "--stripe-pages is %lld, rank 0's %lld: %s",
                       (long long)mine->stripe_pages, (long long)rank0->stripe_pages, where);
    if (strcmp(mine->transport, rank0->transport) != 0)
        return bs_fail(BS_STATUS_MISMATCH, "--transport is %s, rank 0's %s: %s", mine->transport,
                       rank0->transport, where);
    return BS_STATUS_OK;
}

bs_status bs_cli_compare_ground(const void *mine, const void *rank0, size_t bytes, const char *others)
{
    BS_TRY(compare_engines(mine, rank0));
    if (memcmp(mine, rank0, bytes) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "%s is not what rank 0 has: %s", others, where);
}

bs_status bs_cli_gather(bs_comm *comm, const void *mine, size_t bytes, const char *what, void **all)
{
    const int size = bs_comm_size(comm);
    void *received = NULL;
    bs_status status = BS_STATUS_OK;
    if (bs_comm_rank(comm) == 0 && !(received = calloc((size_t)size, bytes)))
        status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for %d ranks", what, size);
    BS_TRY_GOTO(bs_comm_agree(comm, status), err_free);
    BS_TRY_GOTO(bs_comm_gather_host(comm, mine, bytes, received, 0), err_free);
    *all = received;
    return BS_STATUS_OK;
err_free:
    free(received);
    return status;
}

/* ---- the end
 * ------------------------------------------------------------------------------------------------ */

/* Rank 0 speaks first; if the error is another rank's alone, rank 0 waits in a collective meanwhile, and that rank
 * speaks a little later. */
bs_status bs_cli_end_job(bs_comm *comm, bs_status status)
{
    if (bs_comm_size(comm) == 1) return status;
    if (bs_comm_rank(comm) != 0) nanosleep(&(struct timespec){.tv_nsec = 500 * 1000 * 1000}, NULL);
    bs_error_flush();
    bs_comm_abort(comm, bs_status_exit_code(status));
}

/* ---- memory
 * ------------------------------------------------------------------------------------------------- */

enum { N_POOLS = 8 };
static const char *const pool_names[N_POOLS] = {
    "weights", "quantized pages", "f16 pages", "activations", "workspace", "logits", "page lists and plans", "snapshots"};

static void list_pools(const bs_engine_memory *m, uint64_t pools[N_POOLS])
{
    const uint64_t bytes[N_POOLS] = {m->weight_bytes,
                                     m->cache.quant_pool_bytes,
                                     m->cache.f16_pool_bytes,
                                     m->activation_bytes,
                                     m->workspace_bytes,
                                     m->logits_bytes,
                                     m->plan_bytes + m->cache.table_bytes,
                                     m->snapshot_bytes};
    memcpy(pools, bytes, sizeof bytes);
}

static uint64_t sum_pools(const bs_engine_memory *m)
{
    uint64_t pools[N_POOLS], sum = 0;
    list_pools(m, pools);
    for (int i = 0; i < N_POOLS; i++) sum += pools[i];
    return sum;
}

static bs_status print_memory_row(const char *name, uint64_t first, uint64_t worst, uint64_t all)
{
    char text[3][32];
    bs_format_bytes(first, text[0], sizeof text[0]);
    bs_format_bytes(worst, text[1], sizeof text[1]);
    bs_format_bytes(all, text[2], sizeof text[2]);
    return bs_cli_print("%-22s %12s %14s %12s\n", name, text[0], text[1], text[2]);
}

bs_status bs_cli_print_memory(const bs_engine_memory *memory, int n_ranks)
{
    int worst = 0;
    uint64_t total = 0, all[N_POOLS] = {0}, first[N_POOLS], most[N_POOLS];
    for (int rank = 0; rank < n_ranks; rank++) {
        uint64_t pools[N_POOLS];
        list_pools(&memory[rank], pools);
        for (int i = 0; i < N_POOLS; i++) all[i] += pools[i];
        total += sum_pools(&memory[rank]);
        if (sum_pools(&memory[rank]) > sum_pools(&memory[worst])) worst = rank;
    }
    list_pools(&memory[0], first);
    list_pools(&memory[worst], most);
    char title[32];
    snprintf(title, sizeof title, "most: rank %d", worst);
    BS_TRY(bs_cli_print("%-22s %12s %14s %12s\n", "memory", "rank 0", title, "all ranks"));
    for (int i = 0; i < N_POOLS; i++)
        if (i < N_POOLS - 1 || all[i] > 0) /* snapshots: only where they are on */
            BS_TRY(print_memory_row(pool_names[i], first[i], most[i], all[i]));
    return print_memory_row("sum", sum_pools(&memory[0]), sum_pools(&memory[worst]), total);
}
