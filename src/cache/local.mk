noinst_LIBRARIES += libbs_cache.a
libbs_cache_a_SOURCES = src/cache/format.h src/cache/format.c src/cache/cache.h
