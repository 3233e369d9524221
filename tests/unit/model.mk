# Tests of this part.
check_PROGRAMS += tests/unit/test_gguf tests/unit/test_shard tests/unit/test_model tests/unit/test_make_model \
    tests/unit/test_weights tests/unit/test_upload
TESTS += tests/unit/test_gguf tests/unit/test_shard tests/unit/test_model tests/unit/test_make_model \
    tests/unit/test_weights tests/unit/test_upload
tests_unit_test_gguf_SOURCES = tests/unit/test_gguf.c
tests_unit_test_gguf_LDADD = $(BS_TEST_LIBS)
tests_unit_test_shard_SOURCES = tests/unit/test_shard.c
tests_unit_test_shard_LDADD = $(BS_TEST_LIBS)
tests_unit_test_model_SOURCES = tests/unit/test_model.c
tests_unit_test_model_LDADD = $(BS_TEST_LIBS)
tests_unit_test_make_model_SOURCES = tests/unit/test_make_model.c
tests_unit_test_make_model_LDADD = $(BS_TEST_LIBS)
tests_unit_test_weights_SOURCES = tests/unit/test_weights.c
tests_unit_test_weights_LDADD = $(BS_TEST_LIBS)
tests_unit_test_upload_SOURCES = tests/unit/test_upload.c
tests_unit_test_upload_LDADD = $(BS_TEST_LIBS)
check_PROGRAMS += tests/unit/test_random_model
TESTS += tests/unit/test_random_model
tests_unit_test_random_model_SOURCES = tests/unit/test_random_model.c
tests_unit_test_random_model_LDADD = $(BS_TEST_LIBS)
