# Tokenizer and chat templates.
libbs_model_a_SOURCES += src/model/utf8.h src/model/utf8.c src/model/nfc.h src/model/nfc_apart.h src/model/nfc_joined.h src/model/nfc.c src/model/pretokenize.h src/model/pretokenize.c \
    src/model/vocab.h src/model/vocab.c src/model/bpe.h src/model/bpe.c src/model/tokenizer_private.h \
    src/model/tokenizer.c src/model/tokenizer_hf.c src/model/detokenize.c src/model/chat.c
EXTRA_DIST += build-aux/make-nfc-tables.py
