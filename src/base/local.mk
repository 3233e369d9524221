noinst_LIBRARIES += libbs_base.a
libbs_base_a_SOURCES = src/base/status.h src/base/log.h src/base/checked.h src/base/half.h src/base/options.h \
    src/base/progress.h src/base/status.c src/base/log.c src/base/options.c src/base/options_print.c src/base/options_complete.c \
    src/base/progress.c src/base/crc32c.h src/base/crc32c.c src/base/sha256.h src/base/sha256.c
