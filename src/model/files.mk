# GGUF, Hugging Face directories, description, shards, weights.
libbs_model_a_SOURCES += src/model/gguf_private.h src/model/gguf.c src/model/gguf_get.c src/model/gguf_write.h \
    src/model/gguf_write.c src/model/model_private.h src/model/model.c src/model/model_gguf.c \
    src/model/map.h src/model/map.c src/model/json_file.h src/model/json_file.c src/model/safetensors.h src/model/safetensors.c \
    src/model/rope.h src/model/rope.c src/model/model_hf.c src/model/shard.c src/model/upload.h src/model/upload.c src/model/weights.c \
    src/model/make_model.h src/model/make_model.c src/model/shapes.h src/model/shapes.c src/model/random_model.c
