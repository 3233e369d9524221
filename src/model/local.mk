noinst_LIBRARIES += libbs_model.a
libbs_model_a_SOURCES = src/model/model.h src/model/tensor.h src/model/gguf.h src/model/tokenizer.h src/model/chat.h
libbs_model_a_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(PCRE2_CFLAGS)
include src/model/files.mk
include src/model/tokenizer.mk
