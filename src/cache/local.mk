noinst_LIBRARIES += libbs_cache.a
libbs_cache_a_SOURCES = src/cache/format.h src/cache/format.c src/cache/cache.h src/cache/cache_private.h \
    src/cache/cache.c src/cache/plan_memory.c src/cache/pool.h src/cache/pool.c src/cache/sequence.c \
    src/cache/step.c src/cache/tables.c src/cache/fill.c src/cache/stage.c
