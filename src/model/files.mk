# GGUF, description, shards, weights.
libbs_model_a_SOURCES += src/model/gguf_private.h src/model/gguf.c src/model/gguf_get.c
