/* test_openai.c: request bodies and batch lines field by field, with the tokenizer of tests/data; answers as JSON. What a
 * whole job does with them is tests/e2e/test_batch.py. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/serve/batch.h"
#include "tests/unit/tokenizer_golden.h"

#include <stdlib.h>
#include <string.h>

static golden gpt2;
static bs_tokenizer *tokenizer;

static const bs_openai_request defaults = {
    .max_tokens = 17,
    .sampling = {.temperature = 0.25f, .top_p = 1, .repeat_penalty = 1, .seed = 9},
    .stop = {"default"},
    .n_stop = 1};

/* '…' for "…". */
static json_t *parse(const char *text)
{
    char json[1024];
    snprintf(json, sizeof json, "%s", text);
    for (char *c = json; *c; c++)
        if (*c == '\'') *c = '"';
    json_t *root = json_loads(json, 0, NULL);
    assert_non_null(root);
    return root;
}

static void assert_refused(bs_openai_api api, const char *text, const char *line)
{
    json_t *body = parse(text);
    bs_openai_request request = {.max_tokens = -77};
    bs_error_clear();
    assert_int_equal(bs_openai_read(api, body, tokenizer, &defaults, &request), BS_STATUS_RANGE);
    assert_string_equal(bs_error_message(), line);
    assert_int_equal(request.max_tokens, -77); /* outputs are set only on success */
    bs_error_clear();
    json_decref(body);
}

static void test_fields(void **state)
{
    (void)state;
    json_t *body = parse(
        "{'model': 'x', 'prompt': 'abc', 'max_tokens': 5, 'temperature': 1.5, 'top_p': 0.5, 'top_k': 40,"
        " 'min_p': 0.125, 'repeat_penalty': 1.25, 'seed': -3, 'stop': ['a', 'bc'], 'ignore_eos': true, 'n': "
        "1,"
        " 'best_of': 1, 'stream': false, 'logit_bias': {}, 'echo': null, 'suffix': '', 'user': 'me'}");
    bs_openai_request r;
    bs_tokens ids = {0};
    assert_int_equal(bs_openai_read(BS_OPENAI_COMPLETIONS, body, tokenizer, &defaults, &r), BS_STATUS_OK);
    assert_int_equal(bs_tokenize(tokenizer, "abc", 3, false, &ids), BS_STATUS_OK);
    assert_int_equal(r.prompt.n, ids.n);
    assert_memory_equal(r.prompt.ids, ids.ids, ids.n * sizeof *ids.ids);
    assert_int_equal(r.max_tokens, 5);
    assert_true(r.sampling.temperature == 1.5f && r.sampling.top_p == 0.5f && r.sampling.top_k == 40);
    assert_true(r.sampling.min_p == 0.125f && r.sampling.repeat_penalty == 1.25f && r.ignore_end);
    assert_true(r.sampling.seed == (uint64_t)-3);
    assert_int_equal(r.n_stop, 2);
    assert_string_equal(r.stop[1], "bc");
    bs_tokens_free(&ids);
    bs_tokens_free(&r.prompt);
    json_decref(body);
}

static void test_defaults(void **state)
{
    (void)state;
    json_t *body = parse("{'prompt': [3, 1], 'max_tokens': null, 'temperature': null, 'stop': null}");
    bs_openai_request r;
    assert_int_equal(bs_openai_read(BS_OPENAI_COMPLETIONS, body, tokenizer, &defaults, &r), BS_STATUS_OK);
    assert_int_equal(r.prompt.n, 2);
    assert_int_equal(r.prompt.ids[0], 3);
    assert_int_equal(r.max_tokens, 17);
    assert_memory_equal(&r.sampling, &defaults.sampling, sizeof r.sampling);
    assert_int_equal(r.n_stop, 1);
    assert_string_equal(r.stop[0], "default");
    bs_tokens_free(&r.prompt);
    json_decref(body);
}

/* The bounds themselves are inside. */
static void test_ranges(void **state)
{
    (void)state;
    static const char *const good[] = {"'temperature': 0",
                                       "'temperature': 2",
                                       "'top_p': 1",
                                       "'top_p': 0.001",
                                       "'min_p': 0",
                                       "'min_p': 1",
                                       "'top_k': 0",
                                       "'top_k': 2147483647",
                                       "'max_tokens': 0",
                                       "'max_tokens': 1073741824",
                                       "'seed': 9223372036854775807",
                                       "'repeat_penalty': 1000"};
    static const struct {
        const char *field, *line;
    } bad[] = {{"'temperature': 2.001", "temperature 2.001: must be a number, 0 to 2"},
               {"'temperature': -0.5", "temperature -0.5: must be a number, 0 to 2"},
               {"'temperature': true", "temperature true: must be a number, 0 to 2"},
               {"'top_p': 0", "top_p 0: must be a number above 0, up to 1"},
               {"'top_p': 1e-60", "top_p 1e-60: must be a number above 0, up to 1"},
               {"'top_p': 1.5", "top_p 1.5: must be a number above 0, up to 1"},
               {"'min_p': 1.5", "min_p 1.5: must be a number, 0 to 1"},
               {"'repeat_penalty': 0", "repeat_penalty 0: must be a number above 0, up to 1000"},
               {"'top_k': 2147483648", "top_k 2147483648: must be a whole number, 0 to 2147483647"},
               {"'top_k': 1.0", "top_k 1.0: must be a whole number, 0 to 2147483647"},
               {"'max_tokens': 1073741825", "max_tokens 1073741825: must be a whole number, 0 to 1073741824"},
               {"'max_tokens': '5'", "max_tokens \"5\": must be a whole number, 0 to 1073741824"},
               {"'seed': 1.5", "seed 1.5: must be a whole number of 64 bits"},
               {"'n': 2", "n 2: must be 1"},
               {"'n': 1.0", "n 1.0: must be 1"},
               {"'best_of': 0", "best_of 0: must be 1"},
               {"'logprobs': 3", "logprobs 3: not supported"},
               {"'presence_penalty': 0.5", "presence_penalty 0.5: not supported"},
               {"'suffix': 'x'", "suffix \"x\": not supported"},
               {"'model': 5", "model 5: must be a text"},
               {"'ignore_eos': 1", "ignore_eos 1: must be true or false"},
               {"'stop': 5", "stop 5: must be a text that is not empty"},
               {"'tools': []", "body has \"tools\": not a field of /v1/completions"},
               {"'messages': []", "body has \"messages\": not a field of /v1/completions"}};
    char text[256];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        bs_openai_request r;
        snprintf(text, sizeof text, "{'prompt': 'x', %s}", good[i]);
        json_t *body = parse(text);
        assert_int_equal(bs_openai_read(BS_OPENAI_COMPLETIONS, body, tokenizer, &defaults, &r), BS_STATUS_OK);
        bs_tokens_free(&r.prompt);
        json_decref(body);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, "{'prompt': 'x', %s}", bad[i].field);
        assert_refused(BS_OPENAI_COMPLETIONS, text, bad[i].line);
    }
}

static void test_chat(void **state)
{
    (void)state;
    static const char turn[] =
        "{'messages': [{'role': 'developer', 'content': 'Be.'}, {'role': 'user', 'content':"
        " [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]}], 'max_completion_tokens': 3,"
        " 'tools': [], 'response_format': {'type': 'text'}, 'tool_choice': 'auto'}";
    bs_chat_message messages[] = {{"system", "Be.", 3}, {"user", "ab", 2}};
    bs_openai_request r;
    bs_tokens ids = {0};
    json_t *body = parse(turn);
    assert_int_equal(bs_openai_read(BS_OPENAI_CHAT, body, tokenizer, &defaults, &r), BS_STATUS_OK);
    assert_int_equal(bs_chat_tokenize(tokenizer, messages, 2, &ids), BS_STATUS_OK);
    assert_int_equal(r.prompt.n, ids.n);
    assert_memory_equal(r.prompt.ids, ids.ids, ids.n * sizeof *ids.ids);
    assert_int_equal(r.max_tokens, 3);
    bs_tokens_free(&ids);
    bs_tokens_free(&r.prompt);
    json_decref(body);
    assert_refused(BS_OPENAI_CHAT, "{'messages': [5]}", "messages[0] 5: must be an object");
    assert_refused(BS_OPENAI_CHAT, "{'messages': {}}",
                   "messages {}: must be a list of messages, one at least");
    assert_refused(BS_OPENAI_CHAT, "{'messages': [{'content': 'x'}]}", "messages[0].role is missing");
    assert_refused(BS_OPENAI_CHAT, "{'messages': [{'role': 'user', 'content': null}]}",
                   "messages[0].content null: must be a text or a list of text parts");
    assert_refused(
        BS_OPENAI_CHAT,
        "{'messages': [{'role': 'user', 'content': 'x'}], 'response_format': {'type': 'json_object'}}",
        "response_format {\"type\":\"json_object\"}: not supported");
}

static void test_lines(void **state)
{
    (void)state;
    bs_batch_line line;
    bs_openai_request r;
    const char *text = "{\"custom_id\": \"one\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
                       "\"body\": {\"prompt\": \"x\"}}";
    assert_int_equal(bs_batch_line_open(text, strlen(text), &line), BS_STATUS_OK);
    assert_string_equal(line.custom_id, "one");
    assert_int_equal(bs_batch_line_read(&line, tokenizer, &defaults, &r), BS_STATUS_OK);
    assert_int_equal(r.api, BS_OPENAI_COMPLETIONS);
    bs_tokens_free(&r.prompt);
    bs_batch_line_close(&line);
    for (size_t n = 0; n < strlen(text); n++) { /* no beginning of a line is a line */
        bs_error_clear();
        assert_int_equal(bs_batch_line_open(text, n, &line), BS_STATUS_FORMAT);
        assert_true(strncmp(bs_error_message(), "not JSON: ", 10) == 0);
    }
    bs_error_clear();
}

/* One line each, whatever is in them, and JSON that says the same. */
static void test_output(void **state)
{
    (void)state;
    bs_request_stats stats = {
        .finish = BS_FINISH_STOP, .n_prompt = 4, .n_answer = 2, .text = "a\n\"\0b", .text_bytes = 5};
    char *text = bs_batch_answer_text(7, "i\"d", BS_OPENAI_CHAT, "m", &stats);
    assert_non_null(text);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    json_t *root = json_loads(text, JSON_ALLOW_NUL, NULL);
    const char *id, *content, *finish;
    size_t bytes;
    int prompt, completion, total, status;
    assert_int_equal(json_unpack(root, "{s:s, s:{s:i, s:{s:[{s:{s:s%}, s:s}], s:{s:i, s:i, s:i}}}}",
                                 "custom_id", &id, "response", "status_code", &status, "body", "choices",
                                 "message", "content", &content, &bytes, "finish_reason", &finish, "usage",
                                 "prompt_tokens", &prompt, "completion_tokens", &completion, "total_tokens",
                                 &total),
                     0);
    assert_string_equal(id, "i\"d");
    assert_int_equal(bytes, 5);
    assert_memory_equal(content, stats.text, 5);
    assert_string_equal(finish, "stop");
    assert_true(status == 200 && prompt == 4 && completion == 2 && total == 6);
    assert_true(json_is_null(json_object_get(root, "error")));
    json_decref(root);
    free(text);
    text = bs_batch_error_text(8, NULL, BS_BATCH_INVALID_LINE,
                               "cut \xc3"); /* a message that was cut inside a character */
    assert_non_null(text);
    root = json_loads(text, 0, NULL);
    const char *code, *message;
    int number;
    assert_int_equal(json_unpack(root, "{s:n, s:{s:s, s:s, s:i}}", "custom_id", "error", "code", &code,
                                 "message", &message, "line", &number),
                     0);
    assert_string_equal(code, "invalid_line");
    assert_string_equal(message, "cut ");
    assert_int_equal(number, 8);
    json_decref(root);
    free(text);
}

static int set_up(void **state)
{
    (void)state;
    if (!golden_load("gpt2", &gpt2)) return 1;
    tokenizer = golden_tokenizer(&gpt2, "{{'<|im_start|>' + role}}");
    return tokenizer ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    bs_tokenizer_close(tokenizer);
    golden_free(&gpt2);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fields), cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_ranges), cmocka_unit_test(test_chat),
                                       cmocka_unit_test(test_lines),  cmocka_unit_test(test_output)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
