/* cmd_tokenize.c: text to ids, ids to text. One process; under mpirun each rank would do the same. */
#include "config.h"

#include "src/cli/common.h"
#include "src/cli/table.h"
#include "src/model/tokenizer.h"

#include <stdlib.h>

static bs_status print_text(const bs_tokenizer *tokenizer, const bs_tokens *ids, bool show_special)
{
    bs_detokenizer detokenizer;
    bs_detokenizer_init(&detokenizer, tokenizer, show_special);
    detokenizer.strip_space = bs_tokenizer_prefixes_space(tokenizer);
    char *text = NULL;
    size_t bytes = 0;
    bs_status status = BS_STATUS_OK;
    for (size_t i = 0; i < ids->n && status == BS_STATUS_OK; i++)
        status = bs_detokenizer_push(&detokenizer, ids->ids[i], &text, &bytes);
    if (status == BS_STATUS_OK) status = bs_detokenizer_finish(&detokenizer, &text, &bytes);
    if (status == BS_STATUS_OK) status = bs_cli_write(text ? text : "", bytes);
    free(text);
    return status;
}

static bs_status print_ids(const bs_tokens *ids, bool json)
{
    if (json) {
        json_t *list = json_array();
        for (size_t i = 0; i < ids->n; i++) json_array_append_new(list, json_integer(ids->ids[i]));
        return bs_cli_print_json(json_pack("{s:o}", "tokens", list));
    }
    for (size_t i = 0; i < ids->n; i++) printf(i > 0 ? " %d" : "%d", ids->ids[i]);
    return bs_cli_write("\n", 1);
}

static bs_status convert(const bs_options *options, const bs_tokenizer *tokenizer, const char *text,
                         size_t bytes, bs_tokens *ids)
{
    if (bs_options_flag(options, "decode")) {
        BS_TRY(bs_cli_read_ids("decode", text, bs_tokenizer_n_vocab(tokenizer), ids));
        return print_text(tokenizer, ids, bs_options_flag(options, "show-special"));
    }
    if (bs_options_flag(options, "bos")) {
        int32_t bos = bs_tokenizer_bos(tokenizer);
        if (bos < 0) return bs_fail(BS_STATUS_UNSUPPORTED, "--bos: the model has no begin token");
        BS_TRY(bs_tokens_push(ids, bos));
    }
    BS_TRY(bs_tokenize(tokenizer, text, bytes, bs_options_flag(options, "parse-special"), ids));
    return print_ids(ids, bs_options_flag(options, "json"));
}

bs_status bs_cli_tokenize(const bs_options *options, bs_comm *comm)
{
    (void)comm;
    bs_model *model = NULL;
    bs_tokenizer *tokenizer = NULL;
    bs_tokens ids = {0};
    char *text = NULL;
    size_t bytes;
    bs_status status;
    if (bs_options_flag(options, "decode") &&
        (bs_options_flag(options, "json") || bs_options_flag(options, "bos")))
        return bs_fail(BS_STATUS_USAGE, "--decode: not together with --json or --bos");
    BS_TRY_GOTO(bs_cli_open_model(options, &model), err_close);
    BS_TRY_GOTO(bs_tokenizer_open(model, &tokenizer), err_close);
    BS_TRY_GOTO(bs_cli_read_text(options, &text, &bytes), err_close);
    status = convert(options, tokenizer, text, bytes, &ids);
err_close:
    bs_tokens_free(&ids);
    free(text);
    bs_tokenizer_close(tokenizer);
    bs_model_close(model);
    return status;
}
