noinst_LIBRARIES += libbs_cache.a
libbs_cache_a_SOURCES = src/cache/format.h src/cache/cache.h
