noinst_LIBRARIES += libbs_serve.a
libbs_serve_a_SOURCES = src/serve/openai.h src/serve/openai_request.c src/serve/openai_answer.c src/serve/batch.h \
    src/serve/batch_line.c src/serve/batch_answers.c
libbs_serve_a_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
