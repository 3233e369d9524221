/* eval_text.c: the text of an evaluation and its windows.
 *
 * A window is a sequence of its own, from position 0. The next begins so that it has `overlap` tokens in common with the
 * one before; what that one has predicted is given, not counted again. So every token is counted once, with at least
 * `overlap` tokens before it once the text has so many. Without a begin token nothing predicts a window's first token.
 */
#include "config.h"

#include "src/cli/eval.h"
#include "src/base/checked.h"
#include "src/base/log.h"

#include <stdlib.h>

/* Whether an option was given, and its value. */
static bool given(const bs_eval *e, const char *name, int64_t *value)
{
    if (!bs_options_given(e->options, name)) return false;
    *value = bs_options_int(e->options, name);
    return true;
}

static bs_status choose_windows(bs_eval *e)
{
    const int trained = bs_model_get_desc(e->model)->context_length, n_bos = e->bos >= 0;
    const int64_t need = e->n_text + n_bos;
    const char *path = bs_options_string(e->options, "text");
    e->context = need;
    if (!given(e, "context", &e->context) && need > trained)
        return bs_fail(
            BS_STATUS_USAGE,
            "--text %s: %lld tokens, and the model was trained for %d: give --context %d, for windows", path,
            (long long)need, trained, trained);
    if (e->context < 2 + n_bos)
        return bs_fail(BS_STATUS_USAGE, "--context %lld: must be %d or more", (long long)e->context,
                       2 + n_bos);
    if (e->context > trained && need > trained)
        bs_log_warn("windows of %lld tokens: the model was trained for %d",
                    (long long)bs_min_i64(e->context, need), trained);
    e->overlap = e->context / 2;
    if (given(e, "overlap", &e->overlap) && e->overlap >= e->context - n_bos)
        return bs_fail(BS_STATUS_USAGE, "--overlap %lld: must be below a window's %lld tokens",
                       (long long)e->overlap, (long long)(e->context - n_bos));
    e->one_pass = need <= e->context;
    e->context = bs_min_i64(e->context, need);
    return BS_STATUS_OK;
}

bs_status bs_eval_read_text(bs_eval *e)
{
    const char *path = bs_options_string(e->options, "text");
    char *text;
    size_t bytes;
    if (!path) return bs_fail(BS_STATUS_USAGE, "--text FILE is needed");
    BS_TRY(bs_cli_read_file("text", path, &text, &bytes));
    bs_status status = bs_tokenize(e->tokenizer, text, bytes, false, &e->text);
    free(text);
    BS_TRY(status);
    e->n_text = (int64_t)e->text.n;
    e->bos = bs_tokenizer_adds_bos(e->tokenizer) ? bs_tokenizer_bos(e->tokenizer) : -1;
    if (bytes == 0) return bs_fail(BS_STATUS_USAGE, "--text %s: is empty", path);
    if (e->n_text < 2)
        return bs_fail(BS_STATUS_USAGE, "--text %s: %lld token: at least 2 are needed", path,
                       (long long)e->n_text);
    return choose_windows(e);
}

static bs_eval_window window_at(const bs_eval *e, int64_t first, int64_t counted)
{
    const int n_bos = e->bos >= 0;
    return (bs_eval_window){first, bs_min_i64(e->context - n_bos, e->n_text - first),
                            bs_max_i64(counted, first + 1 - n_bos)};
}

bs_eval_window bs_eval_first_window(const bs_eval *e)
{
    return window_at(e, 0, 0);
}

bool bs_eval_next_window(const bs_eval *e, bs_eval_window *w)
{
    const int64_t end = w->first + w->n;
    if (end == e->n_text) return false;
    *w = window_at(e, end - e->overlap, end);
    return true;
}

int64_t bs_eval_window_steps(const bs_eval *e, const bs_eval_window *w)
{
    return w->n - 1 + (e->bos >= 0);
}
