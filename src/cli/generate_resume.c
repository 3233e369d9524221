/* generate_resume.c: what can be made of a snapshot for a request.
 *
 * The ids decide, not names or digests. The same prompt and sampling: the answer goes on where the snapshot has it. Another
 * prompt: what both begin with is kept, the answer is begun anew. Nothing is thrown away silently: an unfinished answer that
 * the request as it now stands would not have begun so is refused, and the line says how to begin anew.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cli/generate.h"

#include <string.h>

static const char anew[] = "give what the snapshot has, or begin anew with --resume never";

static bs_status check_float(const char *path, const char *option, float mine, float its)
{
    if (mine == its) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "%s: its answer was begun with --%s %g, this is %g: %s", path, option,
                   (double)its, (double)mine, anew);
}

static bs_status check_sampling(const char *path, const bs_sampling *mine, const bs_sampling *its)
{
    BS_TRY(check_float(path, "temperature", mine->temperature, its->temperature));
    BS_TRY(check_float(path, "repeat-penalty", mine->repeat_penalty, its->repeat_penalty));
    if (its->temperature == 0) return BS_STATUS_OK; /* greedy: the others change nothing */
    if (mine->top_k != its->top_k)
        return bs_fail(BS_STATUS_MISMATCH, "%s: its answer was begun with --top-k %d, this is %d: %s", path,
                       its->top_k, mine->top_k, anew);
    BS_TRY(check_float(path, "top-p", mine->top_p, its->top_p));
    BS_TRY(check_float(path, "min-p", mine->min_p, its->min_p));
    if (mine->seed != its->seed)
        return bs_fail(BS_STATUS_MISMATCH, "%s: its answer was begun with --seed %llu, this is %llu: %s",
                       path, (unsigned long long)its->seed, (unsigned long long)mine->seed, anew);
    return BS_STATUS_OK;
}

/* The prompt is not the snapshot's, or its answer is complete and another one is asked for. */
static bs_status decide_prefix(int64_t n_common, int64_t n_prompt, resume *out)
{
    /* The last token is computed again in any case: its logits are what the answer begins with. */
    if (n_common >= n_prompt) n_common = n_prompt - 1;
    *out = (resume){.kind = n_common > 0 ? RESUME_PREFIX : RESUME_FRESH, .n_common = n_common};
    return BS_STATUS_OK;
}

static bs_status decide_same(const bs_snapshot_info *info, const char *path, int64_t n_prompt,
                             int64_t max_tokens, const bs_sampling *sampling, bool require, resume *out)
{
    const bs_snapshot_state *state = &info->state;
    const bool next_is_known = info->n_cached < n_prompt || info->n_tokens > info->n_cached;
    const bool by_length = state->finished && out->n_answer == state->max_tokens;
    bs_status sampled = check_sampling(path, sampling, &state->sampling);
    if (sampled != BS_STATUS_OK) {
        if (!state->finished || require) return sampled;
        bs_log_info("%s: its answer is complete; %s", path, "another one is begun, over the same prompt");
        bs_error_clear();
        return decide_prefix(n_prompt, n_prompt, out);
    }
    if (state->finished && !(by_length && max_tokens > state->max_tokens)) {
        out->kind = RESUME_DONE;
    } else if (out->n_answer > max_tokens) {
        return bs_fail(BS_STATUS_MISMATCH, "%s: its answer has %lld tokens, --max-tokens is %lld: %s", path,
                       (long long)out->n_answer, (long long)max_tokens, anew);
    } else if (out->n_answer == max_tokens && out->n_answer > 0) {
        out->kind = RESUME_COMPLETE;
    } else if (next_is_known) {
        out->kind = RESUME_EXACT;
    } else { /* a prompt that was only read in, or an answer that ended at a token of its own */
        if (out->n_answer > 0) out->kind = RESUME_DONE;
        else return decide_prefix(n_prompt, n_prompt, out);
    }
    return BS_STATUS_OK;
}

bs_status bs_generate_check_complete(const char *path, bs_status submitted)
{
    if (submitted != BS_STATUS_MISMATCH) return submitted;
    bs_error_clear();
    return bs_fail(BS_STATUS_MISMATCH,
                   "%s: its answer is complete, and would go on with this --stop, --stop-token or "
                   "--ignore-eos: %s",
                   path, anew);
}

bs_status bs_generate_decide(const bs_snapshot_dir *dir, const char *path, const int32_t *ids,
                             int64_t n_prompt, int64_t n_fill, int64_t max_tokens,
                             const bs_sampling *sampling, bool require, resume *out)
{
    const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
    *out = (resume){.kind = RESUME_FRESH};
    if (!info)
        return require ? bs_fail(BS_STATUS_MISMATCH, "--resume require: %s has no snapshot", path)
                       : BS_STATUS_OK;
    const int64_t n_common = bs_snapshot_common_prefix(dir, ids, n_prompt);
    if (n_common == n_prompt && info->state.n_prompt == n_prompt) {
        out->answer = info->tokens + n_prompt;
        out->n_answer = info->n_tokens - n_prompt;
        out->output_bytes = info->state.output_bytes;
        return decide_same(info, path, n_prompt, max_tokens, sampling, require, out);
    }
    if (require)
        return bs_fail(
            BS_STATUS_MISMATCH,
            "--resume require: the prompt has %lld tokens, that of %s %lld, and the first %lld are the same",
            (long long)(n_prompt - n_fill), path, (long long)(info->state.n_prompt - n_fill),
            (long long)(n_common > n_fill ? n_common - n_fill : 0));
    return decide_prefix(n_common, n_prompt, out);
}
