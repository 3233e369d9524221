/* cmd_make_model.c: a model file from a named shape and the numbers that the options change. */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/common.h"
#include "src/cli/table.h"
#include "src/model/make_model.h"

#include <string.h>
#include <sys/stat.h>

static void take_int(const bs_options *options, const char *name, int *number)
{
    if (bs_options_given(options, name)) *number = (int)bs_options_int(options, name);
}

static void take_shape(const bs_options *options, bs_make_model_config *config)
{
    take_int(options, "layers", &config->n_layers);
    take_int(options, "hidden", &config->n_hidden);
    take_int(options, "heads", &config->n_heads);
    take_int(options, "kv-heads", &config->n_kv_heads);
    take_int(options, "head-dim", &config->head_dim);
    take_int(options, "ffn", &config->n_ffn);
    take_int(options, "vocab", &config->n_vocab);
    take_int(options, "context-length", &config->context_length);
    if (bs_options_given(options, "tied-output"))
        config->tied_output = bs_options_flag(options, "tied-output");
    if (bs_options_given(options, "rope-freqs")) config->rope_freqs = bs_options_flag(options, "rope-freqs");
    if (bs_options_given(options, "rope-theta")) config->rope_theta = bs_options_float(options, "rope-theta");
    config->seed = (uint64_t)bs_options_int(options, "seed");
    const char *type = bs_options_string(options, "weight-type");
    for (int i = 0; type && i < BS_TYPE_COUNT; i++)
        if (strcmp(bs_type_name((bs_type)i), type) == 0) config->type = (bs_type)i;
}

bs_status bs_cli_make_model(const bs_options *options, bs_comm *comm)
{
    (void)comm;
    const char *path = bs_options_operand(options, 1);
    bs_make_model_config config;
    BS_TRY(bs_make_model_shape(bs_options_operand(options, 0), &config));
    take_shape(options, &config);
    BS_TRY(bs_make_model(&config, path));
    struct stat file;
    char size[32] = "";
    if (stat(path, &file) == 0) bs_format_bytes((uint64_t)file.st_size, size, sizeof size);
    bs_log_info(
        "wrote %s: %s, %d layers, hidden %d, %d heads on %d KV heads of %d, FFN %d, vocabulary %d, %s", path,
        size, config.n_layers, config.n_hidden, config.n_heads, config.n_kv_heads, config.head_dim,
        config.n_ffn, config.n_vocab, bs_type_name(config.type));
    return BS_STATUS_OK;
}
