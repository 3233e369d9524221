/* cmd_info.c: the build, the devices of this job's ranks, and a model with the part of it that each rank
 * would hold.
 *
 * Shards are pure arithmetic, so rank 0 computes everybody's; only the devices are gathered. */
#include "config.h"

#include "src/base/progress.h"
#include "src/cache/format.h"
#include "src/cli/common.h"
#include "src/cli/table.h"

#include <stdlib.h>
#include <string.h>

typedef struct info {
    const bs_options *options;
    bs_comm *comm;
    bs_device *device;
    bs_device_info *devices; /* rank 0: of all ranks */
    bs_model *model;         /* NULL without --model */
    bs_kv_format kv;
    bs_merge_method merge;
    bs_grid grid;
} info;

static bs_status print_build(const info *i)
{
    return bs_cli_print("bitshard %s\n"
                        "  compiler        %s\n"
                        "  MPI             %s\n"
                        "  CBLAS           %s\n"
                        "  CUDA            %s\n"
                        "  NCCL            %s\n"
                        "ranks             %d, transport %s\n",
                        PACKAGE_VERSION, BS_BUILD_COMPILER, BS_BUILD_MPI, BS_BUILD_CBLAS, BS_BUILD_CUDA,
                        BS_BUILD_NCCL, bs_comm_size(i->comm), bs_comm_transport(i->comm));
}

/* One line for neighbours that have the same. */
static bs_status print_devices(const info *i)
{
    int size = bs_comm_size(i->comm);
    for (int first = 0, end; first < size; first = end) {
        const bs_device_info *d = &i->devices[first];
        for (end = first + 1; end < size && memcmp(&i->devices[end], d, sizeof *d) == 0;) end++;
        char memory[32], ranks[32];
        bs_format_bytes(d->memory_bytes, memory, sizeof memory);
        snprintf(ranks, sizeof ranks, end - first > 1 ? "%d to %d" : "%d", first, end - 1);
        BS_TRY(bs_cli_print("  device of %-5s %s, memory %s\n", ranks, d->name, memory));
    }
    return BS_STATUS_OK;
}

static bs_status print_types(const bs_model *model)
{
    uint64_t bytes[BS_TYPE_COUNT] = {0};
    int64_t n[BS_TYPE_COUNT] = {0};
    for (int64_t t = 0; t < bs_model_n_tensors(model); t++) {
        const bs_tensor *tensor = bs_model_tensor_at(model, t);
        n[tensor->type]++;
        bytes[tensor->type] += tensor->bytes;
    }
    BS_TRY(bs_cli_print("  tensors        "));
    const char *separator = " ";
    for (int type = 0; type < BS_TYPE_COUNT; type++) {
        if (n[type] == 0) continue;
        char text[32];
        bs_format_bytes(bytes[type], text, sizeof text);
        BS_TRY(
            bs_cli_print("%s%lld %s (%s)", separator, (long long)n[type], bs_type_name((bs_type)type), text));
        separator = ", ";
    }
    return bs_cli_print("\n");
}

static bs_status print_cache(const info *i, const bs_model_desc *d)
{
    char name[BS_KV_FORMAT_NAME], bytes[32], f16[32];
    bs_kv_format_name(&i->kv, name);
    double bits = bs_kv_format_bits(&i->kv, d->head_dim);
    double elements = 2.0 * d->n_layers * d->n_kv_heads * d->head_dim;
    bs_format_bytes((uint64_t)(elements * bits / 8), bytes, sizeof bytes);
    bs_format_bytes((uint64_t)(elements * 2), f16, sizeof f16);
    return bs_cli_print("  KV cache        %s: %.3f bits an element, %s a token (f16: %s)\n", name, bits,
                        bytes, f16);
}

/* ", window of 4096 tokens", "… in 12 of 24 layers"; or "". */
static void describe_window(const bs_model_desc *d, char *text, size_t bytes)
{
    int window = 0, n = 0;
    for (int l = 0; l < d->n_layers; l++) {
        if (d->layers[l].window == 0) continue;
        window = d->layers[l].window;
        n++;
    }
    text[0] = 0;
    if (n == d->n_layers) snprintf(text, bytes, ", window of %d tokens", window);
    else if (n > 0) snprintf(text, bytes, ", window of %d tokens in %d of %d layers", window, n, d->n_layers);
}

static bs_status print_attention(const bs_model_desc *d)
{
    char window[80], scaling[48] = "", layers[48] = "";
    int n_rope = 0;
    describe_window(d, window, sizeof window);
    for (int l = 0; l < d->n_layers; l++) n_rope += d->layers[l].rope;
    if (d->rope_kind != BS_ROPE_PLAIN)
        snprintf(scaling, sizeof scaling, ", %s scaling", bs_rope_kind_name(d->rope_kind));
    if (n_rope < d->n_layers) snprintf(layers, sizeof layers, ", in %d of %d layers", n_rope, d->n_layers);
    BS_TRY(bs_cli_print("  attention       %d heads on %d KV heads of %d%s\n", d->n_heads, d->n_kv_heads,
                        d->head_dim, window));
    return bs_cli_print("  RoPE            base %g, %d channels, %s%s%s\n", d->rope_theta, d->n_rot,
                        d->rope_interleaved ? "interleaved" : "halves", scaling, layers);
}

static bs_status print_model(const info *i)
{
    const bs_model_desc *d = bs_model_get_desc(i->model);
    char bytes[32];
    bs_format_bytes(d->file_bytes, bytes, sizeof bytes);
    BS_TRY(bs_cli_print("model             %s\n", d->name));
    BS_TRY(bs_cli_print("  file            %s, %s, %.2f billion parameters\n", d->architecture, bytes,
                        (double)d->n_params * 1e-9));
    BS_TRY(bs_cli_print("  shape           %d layers, hidden %d, FFN %d, vocabulary %d%s\n", d->n_layers,
                        d->n_hidden, d->n_ffn, d->n_vocab,
                        d->tied_output ? ", output tied to the embedding" : ""));
    BS_TRY(print_attention(d));
    BS_TRY(bs_cli_print("  trained for     %d tokens\n", d->context_length));
    if (d->sampling.sample)
        BS_TRY(bs_cli_print("  authors sample  at temperature %g, top-p %g, top-k %d\n",
                            (double)d->sampling.temperature, (double)d->sampling.top_p, d->sampling.top_k));
    BS_TRY(print_types(i->model));
    return print_cache(i, d);
}

static void format_range(bs_range range, char *text, size_t bytes)
{
    if (range.n == 0) {
        snprintf(text, bytes, "none");
    } else {
        snprintf(text, bytes, "%lld-%lld", (long long)range.first, (long long)(range.first + range.n - 1));
    }
}

static bs_status print_shards(const info *i)
{
    BS_TRY(bs_cli_print("grid              %dx%d, merge %s\n", i->grid.heads, i->grid.seq,
                        bs_merge_method_name(i->merge)));
    BS_TRY(bs_cli_print("  %4s %5s %4s  %-9s %-9s %-13s %-13s %-15s %10s\n", "rank", "heads", "seq", "heads",
                        "KV heads", "o_proj", "FFN", "vocabulary", "weights"));
    for (int rank = 0; rank < i->grid.size; rank++) {
        bs_grid grid = i->grid;
        grid.rank = rank;
        grid.head_shard = rank / grid.seq;
        grid.seq_shard = rank % grid.seq;
        bs_shard s;
        BS_TRY(bs_shard_compute(i->model, &grid, i->merge, &s));
        char text[5][48], bytes[32];
        const bs_range ranges[5] = {s.heads, s.kv_heads, s.o_cols, s.ffn, s.vocab};
        for (int r = 0; r < 5; r++) format_range(ranges[r], text[r], sizeof text[r]);
        bs_format_bytes(bs_shard_weight_bytes(i->model, &s), bytes, sizeof bytes);
        BS_TRY(bs_cli_print("  %4d %5d %4d  %-9s %-9s %-13s %-13s %-15s %10s\n", rank, grid.head_shard,
                            grid.seq_shard, text[0], text[1], text[2], text[3], text[4], bytes));
    }
    return BS_STATUS_OK;
}

static bs_status open_all(info *i)
{
    BS_TRY(bs_cli_read_kv(i->options, &i->kv));
    BS_TRY(bs_cli_read_merge(i->options, &i->merge));
    BS_TRY(bs_cli_open_device(i->options, i->comm, &i->device));
    i->devices = calloc((size_t)bs_comm_size(i->comm), sizeof *i->devices);
    if (!i->devices) return bs_fail(BS_STATUS_NOMEM, "info: no memory for the ranks' devices");
    if (!bs_options_given(i->options, "model")) return BS_STATUS_OK;
    BS_TRY(bs_cli_open_model(i->options, &i->model));
    return bs_cli_choose_grid(i->options, i->comm, i->model, &i->grid);
}

static bs_status print_all(const info *i)
{
    BS_TRY(print_build(i));
    BS_TRY(print_devices(i));
    if (!i->model) return BS_STATUS_OK;
    BS_TRY(print_model(i));
    return print_shards(i);
}

bs_status bs_cli_info(const bs_options *options, bs_comm *comm)
{
    info i = {.options = options, .comm = comm};
    bool leader = bs_comm_rank(comm) == 0;
    bs_status status;
    BS_TRY_GOTO(bs_comm_agree(comm, open_all(&i)), err_close);
    status = bs_comm_gather_host(comm, bs_device_get_info(i.device), sizeof *i.devices,
                                 leader ? i.devices : NULL, 0);
    if (status == BS_STATUS_OK && leader) status = print_all(&i);
    status = bs_comm_agree(comm, status);
err_close:
    free(i.devices);
    bs_model_close(i.model);
    bs_device_close(i.device);
    return status;
}
