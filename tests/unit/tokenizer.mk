# Tests of this part. The golden files are made by tests/data/make_tokenizer_golden.py.
BS_TOKENIZER_TEST_CPPFLAGS = $(AM_CPPFLAGS) -DBS_TEST_DATA='"$(abs_top_srcdir)/tests/data"'
BS_TOKENIZER_TEST_SOURCES = tests/unit/tokenizer_golden.h tests/unit/tokenizer_golden.c
BS_TOKENIZER_TESTS = tests/unit/test_tokenizer tests/unit/test_tokenizer_smollm tests/unit/test_chat \
    tests/unit/test_tokenizer_hf

check_PROGRAMS += $(BS_TOKENIZER_TESTS)
TESTS += $(BS_TOKENIZER_TESTS)
tests_unit_test_tokenizer_SOURCES = tests/unit/test_tokenizer.c $(BS_TOKENIZER_TEST_SOURCES)
tests_unit_test_tokenizer_CPPFLAGS = $(BS_TOKENIZER_TEST_CPPFLAGS)
tests_unit_test_tokenizer_LDADD = $(BS_TEST_LIBS)
tests_unit_test_tokenizer_smollm_SOURCES = tests/unit/test_tokenizer_smollm.c $(BS_TOKENIZER_TEST_SOURCES)
tests_unit_test_tokenizer_smollm_CPPFLAGS = $(BS_TOKENIZER_TEST_CPPFLAGS)
tests_unit_test_tokenizer_smollm_LDADD = $(BS_TEST_LIBS)
tests_unit_test_chat_SOURCES = tests/unit/test_chat.c $(BS_TOKENIZER_TEST_SOURCES)
tests_unit_test_chat_CPPFLAGS = $(BS_TOKENIZER_TEST_CPPFLAGS)
tests_unit_test_chat_LDADD = $(BS_TEST_LIBS)
tests_unit_test_tokenizer_hf_SOURCES = tests/unit/test_tokenizer_hf.c $(BS_TOKENIZER_TEST_SOURCES)
tests_unit_test_tokenizer_hf_CPPFLAGS = $(BS_TOKENIZER_TEST_CPPFLAGS)
tests_unit_test_tokenizer_hf_LDADD = $(BS_TEST_LIBS)

EXTRA_DIST += tests/data/make_hf_tokenizer_golden.py tests/data/hf-tokenizers
EXTRA_DIST += tests/data/make_tokenizer_golden.py tests/data/tokenizer.texts.json tests/data/tokenizer.gpt2.json \
    tests/data/tokenizer.llama-bpe.json tests/data/tokenizer.qwen2.json tests/data/tokenizer.smollm.json
