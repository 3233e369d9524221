# One fragment a directory of tests. A test is a program under check_PROGRAMS and TESTS.
BS_TEST_LIBS = $(BS_LIBS) $(CMOCKA_LIBS) $(BS_SYSLIBS)
EXTRA_DIST += tests/tolerances.h
if HAVE_CMOCKA
include tests/unit/base.mk
include tests/unit/model.mk
include tests/unit/tokenizer.mk
include tests/unit/cache.mk
include tests/unit/engine.mk
include tests/unit/serve.mk
include tests/kernels/dense.mk
include tests/kernels/cache.mk
endif
include tests/comm/comm.mk
include tests/kernels/gpu.mk
include tests/snapshot/snapshot.mk
include tests/e2e/e2e.mk
include tests/fuzz/fuzz.mk
include tests/faults/faults.mk
include tests/lint/lint.mk
