# Fuzz targets. make check replays the corpus; ../configure --enable-fuzzers CC=…/tests/fuzz/cc.sh and tests/fuzz/run.sh fuzz.
BS_FUZZ_TARGETS = tests/fuzz/fuzz_gguf tests/fuzz/fuzz_safetensors tests/fuzz/fuzz_tokenizer tests/fuzz/fuzz_tokenizer_json \
    tests/fuzz/fuzz_chat tests/fuzz/fuzz_batch
BS_FUZZ_SOURCES = tests/fuzz/fuzz.h tests/fuzz/fuzz_vocab.c
if BS_FUZZERS
BS_LIBFUZZER = $(AM_LDFLAGS) -fsanitize=fuzzer
else
BS_LIBFUZZER = $(AM_LDFLAGS)
BS_FUZZ_SOURCES += tests/fuzz/fuzz_main.c
TESTS += $(BS_FUZZ_TARGETS)
endif
check_PROGRAMS += $(BS_FUZZ_TARGETS)
tests_fuzz_fuzz_gguf_SOURCES = tests/fuzz/fuzz_gguf.c tests/fuzz/fuzz_cut.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_gguf_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_gguf_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
tests_fuzz_fuzz_safetensors_SOURCES = tests/fuzz/fuzz_safetensors.c tests/fuzz/fuzz_cut.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_safetensors_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_safetensors_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
tests_fuzz_fuzz_tokenizer_json_SOURCES = tests/fuzz/fuzz_tokenizer_json.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_tokenizer_json_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_tokenizer_json_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
tests_fuzz_fuzz_tokenizer_SOURCES = tests/fuzz/fuzz_tokenizer.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_tokenizer_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_tokenizer_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
tests_fuzz_fuzz_chat_SOURCES = tests/fuzz/fuzz_chat.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_chat_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_chat_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
tests_fuzz_fuzz_batch_SOURCES = tests/fuzz/fuzz_batch.c $(BS_FUZZ_SOURCES)
tests_fuzz_fuzz_batch_LDFLAGS = $(BS_LIBFUZZER)
tests_fuzz_fuzz_batch_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
EXTRA_DIST += tests/fuzz/corpus tests/fuzz/run.sh tests/fuzz/cc.sh tests/fuzz/make_seeds.py
