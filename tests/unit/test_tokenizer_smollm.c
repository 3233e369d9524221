/* test_tokenizer_smollm.c: SmolLM2's real vocabulary and template against the reference library. The model
 * file is $BITSHARD_TEST_MODEL; without it the test is skipped. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/tokenizer_golden.h"

#include <stdio.h>
#include <stdlib.h>

static golden smollm;
static bs_tokenizer *tokenizer;

static void test_texts(void **state)
{
    (void)state;
    assert_golden_texts(&smollm, tokenizer);
}

static void test_decodes(void **state)
{
    (void)state;
    assert_golden_decodes(&smollm, tokenizer);
}

static void test_chats(void **state)
{
    const json_t *template = json_array_get(json_object_get(smollm.root, "chat"), 0);
    (void)state;
    assert_int_equal(bs_chat_family_of(tokenizer), BS_CHAT_CHATML);
    assert_golden_chats(json_object_get(template, "chats"), tokenizer);
}

static void test_ids(void **state)
{
    (void)state;
    assert_int_equal(bs_tokenizer_n_vocab(tokenizer), 49152);
    assert_int_equal(bs_tokenizer_bos(tokenizer), 1);
    assert_int_equal(bs_tokenizer_eos(tokenizer), 2);
    assert_true(bs_tokenizer_is_end(tokenizer, 0) && bs_tokenizer_is_end(tokenizer, 2));
    assert_false(bs_tokenizer_adds_bos(tokenizer));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts), cmocka_unit_test(test_decodes),
                                       cmocka_unit_test(test_chats), cmocka_unit_test(test_ids)};
    const char *path = getenv("BITSHARD_TEST_MODEL");
    bs_model *model = NULL;
    int failed = 1;
    if (!path || !*path) return 77;
    if (golden_load("smollm", &smollm) && bs_model_open(path, &model) == BS_STATUS_OK &&
        bs_tokenizer_open(model, &tokenizer) == BS_STATUS_OK)
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_error_flush();
    bs_tokenizer_close(tokenizer);
    bs_model_close(model);
    golden_free(&smollm);
    return failed;
}
