/* fuzz_batch.c: a line of a batch: read as a request, whose numbers must be in range; the answer or error made of it must
 * be one line of JSON; and the same bytes as a file of answers that a kill has left. */
#include "config.h"

#include "src/base/log.h"
#include "src/serve/batch.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char template[] = "{{ '<|im_start|>' + message['role'] }}";
static const bs_openai_request defaults = {
    .max_tokens = 16, .sampling = {.top_p = 1, .repeat_penalty = 1, .seed = 1}, .stop = {"END"}, .n_stop = 1};

static void check_line(char *text, const char *custom_id)
{
    FUZZ_CHECK(text && strchr(text, '\n') == text + strlen(text) - 1);
    json_t *root = json_loads(text, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
    const char *id = json_string_value(json_object_get(root, "custom_id"));
    FUZZ_CHECK(root && (custom_id ? id && strcmp(id, custom_id) == 0 : !id));
    json_decref(root);
    free(text);
}

static void check_request(const bs_openai_request *r, const bs_tokenizer *tokenizer)
{
    FUZZ_CHECK(r->prompt.n > 0 && r->max_tokens >= 0 && r->max_tokens <= 1 << 30);
    for (size_t i = 0; i < r->prompt.n; i++)
        FUZZ_CHECK(r->prompt.ids[i] >= 0 && r->prompt.ids[i] < bs_tokenizer_n_vocab(tokenizer));
    FUZZ_CHECK(bs_sampling_check(&r->sampling) == BS_STATUS_OK);
    FUZZ_CHECK(r->n_stop >= 0 && r->n_stop <= BS_OPENAI_MAX_STOPS);
    for (int i = 0; i < r->n_stop; i++) FUZZ_CHECK(r->stop[i][0]);
}

static void try_line(const char *text, size_t bytes)
{
    bs_tokenizer *tokenizer = fuzz_tokenizer(1);
    bs_batch_line line;
    bs_openai_request request;
    if (bs_batch_line_open(text, bytes, &line) != BS_STATUS_OK) {
        if (bytes % 4 == 0) /* most inputs end here, and a hundred allocations are slow */
            check_line(bs_batch_error_text(1, NULL, BS_BATCH_INVALID_LINE, bs_error_message()), NULL);
        fuzz_expect_line(BS_STATUS_FORMAT);
        return;
    }
    bs_status status = bs_batch_line_read(&line, tokenizer, &defaults, &request);
    if (status == BS_STATUS_OK) {
        check_request(&request, tokenizer);
        bs_request_stats stats = {.finish = BS_FINISH_STOP, .text = "a\n", .text_bytes = 2};
        check_line(bs_batch_answer_text(2, line.custom_id, request.api, "m", &stats), line.custom_id);
        bs_tokens_free(&request.prompt);
    } else {
        check_line(bs_batch_error_text(2, line.custom_id, BS_BATCH_INVALID_REQUEST, bs_error_message()),
                   line.custom_id);
        fuzz_expect_line(status);
    }
    bs_batch_line_close(&line);
}

/* Opened once more after it was repaired, the file must be whole and unchanged; a refused one is as it was. */
static void try_answers(const uint8_t *data, size_t size)
{
    static char path[64];
    static int fd = -1;
    if (fd < 0) fd = memfd_create("answers", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    FUZZ_CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    bs_batch_answers *answers;
    bs_status status = bs_batch_answers_open(path, 0, &answers);
    off_t left = lseek(fd, 0, SEEK_END);
    if (status != BS_STATUS_OK) {
        FUZZ_CHECK(left == (off_t)size);
        fuzz_expect_line(status);
        return;
    }
    bs_batch_answers_close(answers);
    char last = '\n';
    FUZZ_CHECK(left <= (off_t)size + 1 && (left == 0 || pread(fd, &last, 1, left - 1) == 1) && last == '\n');
    FUZZ_CHECK(bs_batch_answers_open(path, 0, &answers) == BS_STATUS_OK && lseek(fd, 0, SEEK_END) == left);
    bs_batch_answers_close(answers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool ready;
    if (!ready) {
        bs_log_set_level(BS_LOG_QUIET);
        FUZZ_CHECK(bs_tokenizer_set_chat_template(fuzz_tokenizer(1), template, strlen(template)) ==
                   BS_STATUS_OK);
        ready = true;
    }
    try_line((const char *)data, size);
    if (size % 8 == 0) try_answers(data, size); /* a dozen system calls are slow */
    return 0;
}
