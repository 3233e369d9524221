# The program, and bitshard(1) from its own table of options.
bin_PROGRAMS += bitshard
bitshard_SOURCES = src/cli/main.c src/cli/table.h src/cli/table.c src/cli/common.h src/cli/common.c \
    src/cli/stop.h src/cli/stop.c src/cli/generate.h src/cli/cmd_generate.c src/cli/generate_orders.c src/cli/generate_answer.c src/cli/generate_batch.c \
    src/cli/generate_lines.c src/cli/generate_snapshot.c src/cli/generate_resume.c src/cli/generate_report.c \
    src/cli/output.h src/cli/output.c src/cli/when.h src/cli/when.c src/cli/cmd_tokenize.c \
    src/cli/cmd_make_model.c src/cli/cmd_info.c src/cli/cmd_snapshot.c src/cli/cmd_bench.c src/cli/bench.h src/cli/bench_data.h \
    src/cli/bench_cases.c src/cli/bench_data.c src/cli/bench_reference.c src/cli/bench_attend.c \
    src/cli/bench_quantize.c src/cli/bench_gemv.c src/cli/bench_gemm.c src/cli/bench_read.c src/cli/bench_time.c src/cli/bench_report.c \
    src/cli/bench_engine.h src/cli/bench_engine.c src/cli/bench_decode.h src/cli/bench_decode.c src/cli/bench_decode_report.c src/cli/bench_prefill.h \
    src/cli/bench_prefill.c src/cli/prefill_model.h src/cli/prefill_model.c src/cli/bench_prefill_report.c src/cli/bench_comm.c src/cli/bench_snapshot.c \
    src/cli/eval.h src/cli/cmd_eval.c src/cli/eval_text.c src/cli/eval_report.c
bitshard_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
bitshard_LDADD = $(BS_LIBS) $(BS_SYSLIBS)

# Read by the bash-completion package, or by ". FILE".
bashcompletiondir = $(datadir)/bash-completion/completions
bashcompletion_DATA = docs/man/bitshard
CLEANFILES += docs/man/bitshard
docs/man/bitshard: bitshard$(EXEEXT)
	$(AM_V_GEN)$(MKDIR_P) docs/man && ./bitshard$(EXEEXT) --bash-completion > $@.tmp && mv $@.tmp $@

man1_MANS = docs/man/bitshard.1
CLEANFILES += docs/man/bitshard.1
docs/man/bitshard.1: bitshard$(EXEEXT)
	$(AM_V_GEN)$(MKDIR_P) docs/man && ./bitshard$(EXEEXT) --man > $@.tmp && mv $@.tmp $@

BS_CLI_TESTS = tests/e2e/test_cli.py tests/e2e/test_synth.py tests/e2e/test_batch.py tests/e2e/test_pages.py tests/e2e/test_eval.py tests/e2e/test_prefill.py
BS_CLI_TESTS += tests/e2e/test_resume.py tests/e2e/test_resume_grids.py tests/faults/test_batch_resume.py
BS_CLI_TESTS += tests/faults/test_batch_kills.py tests/faults/test_hostile.py
TESTS += $(BS_CLI_TESTS)
check_PROGRAMS += tests/unit/test_prefill_model
TESTS += tests/unit/test_prefill_model
tests_unit_test_prefill_model_SOURCES = tests/unit/test_prefill_model.c src/cli/prefill_model.h src/cli/prefill_model.c
tests_unit_test_prefill_model_LDADD = $(CMOCKA_LIBS) -lm
EXTRA_DIST += $(BS_CLI_TESTS) tests/e2e/resume.py tests/bench/batch.py tests/bench/compare_llama.py tests/bench/plot.py tests/bench/plot_eval.py tests/bench/torch_attend.py tests/bench/torch_prefill.py tests/bench/torch_decode.py tests/bench/plot_decode.py tests/bench/plot_prefill.py
