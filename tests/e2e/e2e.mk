# End to end: the program and model_run on real and tiny models. Python drives them; no numpy or model: skipped.
TEST_EXTENSIONS += .py
PY_LOG_COMPILER = $(PYTHON)
AM_TESTS_ENVIRONMENT = top_srcdir='$(abs_top_srcdir)' top_builddir='$(abs_top_builddir)' srcdir='$(srcdir)' \
    PYTHONDONTWRITEBYTECODE=1; export top_srcdir top_builddir srcdir PYTHONDONTWRITEBYTECODE;

check_PROGRAMS += tests/e2e/model_run
tests_e2e_model_run_SOURCES = tests/e2e/model_run.c
tests_e2e_model_run_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=bs_merge_states
tests_e2e_model_run_LDADD = $(BS_LIBS) $(BS_SYSLIBS)

BS_E2E_TESTS = tests/e2e/test_logits.py tests/e2e/test_greedy.py tests/e2e/test_lowbit.py tests/e2e/test_tiny_grids.py tests/e2e/test_types.py \
    tests/e2e/test_needle.py tests/e2e/test_hf.py tests/e2e/test_gpu.py tests/e2e/test_gpu_snapshot.py tests/faults/test_ranks.py \
    tests/e2e/test_jobs.py tests/e2e/test_slurm.py
TESTS += $(BS_E2E_TESTS)
EXTRA_DIST += $(BS_E2E_TESTS) tests/e2e/common.py tests/e2e/slurm.py tests/e2e/answers.py tests/e2e/hf_dir.py tests/e2e/reference.py \
    tests/data/make_hf_golden.py tests/data/hf

# What make check leaves out: more ranks, more grids.
.PHONY: bigcheck
bigcheck: all
	BITSHARD_BIG=1 $(MAKE) check

clean-local: clean-e2e
clean-e2e:
	-rm -rf tests/e2e/work
