# Tests of src/serve.
check_PROGRAMS += tests/unit/test_openai
TESTS += tests/unit/test_openai
tests_unit_test_openai_SOURCES = tests/unit/test_openai.c $(BS_TOKENIZER_TEST_SOURCES)
tests_unit_test_openai_CPPFLAGS = $(BS_TOKENIZER_TEST_CPPFLAGS)
tests_unit_test_openai_LDADD = $(BS_TEST_LIBS)
