# Tokenizer and chat templates.
libbs_model_a_SOURCES += src/model/utf8.h src/model/utf8.c src/model/pretokenize.h src/model/pretokenize.c \
    src/model/vocab.h src/model/vocab.c src/model/bpe.h src/model/bpe.c src/model/tokenizer_private.h \
    src/model/tokenizer.c src/model/detokenize.c src/model/chat.c
