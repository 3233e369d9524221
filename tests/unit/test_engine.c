/* test_engine.c: one rank's forward pass on a tiny model: what must not matter does not (cuts, neighbours,
 * prefill or decode), what was planned is taken and nothing after, tokens are drawn as asked.
 *
 * malloc and its kin are wrapped at link time, which counts the calls of our own archives and of nobody else.
 */
#include "src/engine/engine_private.h"
#include "tests/tolerances.h"
#include "tests/unit/engine_fixture.h"

#include <math.h>

static fixture f;
static int64_t n_mallocs;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    n_mallocs++;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    n_mallocs++;
    return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    n_mallocs++;
    return __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    n_mallocs++;
    return __real_aligned_alloc(alignment, bytes);
}

static int set_up(void **state)
{
    open_model(&f, "test_engine");
    return 0;
}

static int tear_down(void **state)
{
    close_model(&f);
    return 0;
}

/* ---- helpers ----------------------------------------------------------------------------------------------
 */

/* Logits of ids[pos …] of a started sequence, in steps of `cuts` (the last is repeated), into logits [n,
 * vocab]. */
static void prefill(int seq, const int32_t *ids, int pos, int n, const int *cuts, int n_cuts, float *logits)
{
    for (int cut = 0; pos < n; cut++) {
        int size = cuts[cut < n_cuts ? cut : n_cuts - 1], left = n - pos;
        if (size > left) size = left;
        begin_plan(&f);
        add_tokens(&f, seq, pos, ids + pos, size, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_ALL_LOGITS);
        bs_step_result result = run_plan(&f);
        assert_int_equal(result.n_logit_rows, size);
        assert_int_equal(result.token[0], -1);
        memcpy(logits + (size_t)pos * (size_t)f.n_vocab, result.logits,
               (size_t)size * (size_t)f.n_vocab * sizeof(float));
        pos += size;
    }
}

static void start(int seq, int64_t n_tokens, const bs_sampling *sampling)
{
    begin_plan(&f);
    add_start(&f, seq, n_tokens, sampling);
    run_plan(&f);
}

static void stop(int seq)
{
    begin_plan(&f);
    add_free(&f, seq);
    run_plan(&f);
}

static float *new_logits(int n)
{
    size_t bytes = (size_t)n * (size_t)f.n_vocab * sizeof(float);
    float *logits = malloc(bytes);
    memset(logits, 0xff, bytes); /* NaN */
    return logits;
}

/* The worst row's ‖a − b‖ / ‖b‖. NaN where either has one. */
static double worst_difference(const float *a, const float *b, int n)
{
    double worst = 0;
    for (int row = 0; row < n; row++) {
        double error2 = 0, norm2 = 0;
        for (int i = 0; i < f.n_vocab; i++) {
            double x = a[row * f.n_vocab + i], y = b[row * f.n_vocab + i];
            error2 += (x - y) * (x - y);
            norm2 += y * y;
        }
        double error = sqrt(error2 / norm2);
        if (!(error <= worst)) worst = error;
        if (isnan(worst)) break;
    }
    return worst;
}

#define assert_near(a, b, n, tolerance)                                                                      \
    do {                                                                                                     \
        double worst_ = worst_difference(a, b, n);                                                           \
        if (!(worst_ <= (tolerance))) fail_msg("differ by %g, tolerance %g", worst_, (double)(tolerance));   \
        print_message("  worst row differs by %.3g\n", worst_);                                              \
    } while (0)

/* ---- what must not matter ---------------------------------------------------------------------------------
 */

enum { N_PROMPT = 500 };

static void cuts_do_not_matter(void **state)
{
    int32_t ids[N_PROMPT];
    float *whole = new_logits(N_PROMPT), *cut = new_logits(N_PROMPT);
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 1, ids, N_PROMPT);
    start(0, N_PROMPT, &greedy);
    start(1, N_PROMPT, &greedy);
    prefill(0, ids, 0, N_PROMPT, (int[]){N_PROMPT}, 1, whole);
    prefill(1, ids, 0, N_PROMPT, (int[]){1, 2, 127, 13, 128, 129, 7}, 7, cut);
    assert_near(cut, whole, N_PROMPT, TOL_ENGINE_F16);
    close_engine(&f);
    free(whole);
    free(cut);
}

static void cuts_do_not_change_what_is_quantized(void **state)
{
    enum { N = 900 };
    int32_t ids[N];
    float *whole = new_logits(N), *cut = new_logits(N);
    bs_engine_config config = make_config("int4");
    config.chunk_tokens = 256;
    open_engine(&f, &config);
    make_ids(&f, 2, ids, N);
    start(0, N, &greedy);
    start(1, N, &greedy);
    prefill(0, ids, 0, N, (int[]){256}, 1, whole);
    prefill(1, ids, 0, N, (int[]){32}, 1, cut);
    int n_quant = 0;
    for (int page = 0; page * BS_PAGE_TOKENS < N; page++) {
        bs_page_view a = bs_cache_page(bs_engine_cache(f.engine), 0, page);
        bs_page_view b = bs_cache_page(bs_engine_cache(f.engine), 1, page);
        assert_int_equal(a.kind, b.kind);
        n_quant += a.kind == BS_PAGE_QUANT;
    }
    assert_int_equal(n_quant, 3); /* base 768: pages 1 … 3 are behind the sink and two recent ones */
    assert_near(cut, whole, N, TOL_ENGINE_INT4);
    close_engine(&f);
    free(whole);
    free(cut);
}

static void decode_equals_prefill(void **state)
{
    enum { N = 300, N_PREFILL = 250 };
    int32_t ids[N];
    float *whole = new_logits(N), *cut = new_logits(N);
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 3, ids, N);
    start(2, N, &greedy);
    start(0, N, &greedy);
    prefill(2, ids, 0, N, (int[]){N}, 1, whole);
    prefill(0, ids, 0, N_PREFILL, (int[]){N_PREFILL}, 1, cut);
    for (int pos = N_PREFILL; pos < N; pos++) {
        begin_plan(&f);
        add_tokens(&f, 0, pos, ids + pos, 1, BS_PLAN_SEQ_ALL_LOGITS | BS_PLAN_SEQ_SAMPLE);
        bs_step_result result = run_plan(&f);
        memcpy(cut + (size_t)pos * (size_t)f.n_vocab, result.logits, (size_t)f.n_vocab * sizeof(float));
        assert_true(result.token[0] >= 0 && result.token[0] < f.n_vocab);
        assert_true(result.logprob[0] <= 0);
    }
    assert_near(cut, whole, N, TOL_ENGINE_F16);
    close_engine(&f);
    free(whole);
    free(cut);
}

/* Four sequences of different lengths, prefilled and decoded side by side in the same steps, against each
 * alone. */
static void neighbours_do_not_matter(void **state)
{
    enum { N_SEQS = 4, N_DECODE = 20, MAX = 160 + N_DECODE };
    const int lengths[N_SEQS] = {1, 37, 128, 160};
    int32_t ids[N_SEQS][MAX];
    float *alone[N_SEQS], *together[N_SEQS];
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    for (int s = 0; s < N_SEQS; s++) {
        make_ids(&f, 10 + (uint32_t)s, ids[s], MAX);
        alone[s] = new_logits(MAX);
        together[s] = new_logits(MAX);
        start(s, MAX, &greedy);
        prefill(s, ids[s], 0, lengths[s] + N_DECODE, (int[]){lengths[s], 1}, 2, alone[s]);
        stop(s);
    }
    for (int s = 0; s < N_SEQS; s++) start(s, MAX, &greedy);
    for (int step = 0; step <= N_DECODE; step++) {
        begin_plan(&f);
        for (int i = 0; i < N_SEQS; i++) {
            int s = (i + step) % N_SEQS, pos = step ? lengths[s] + step - 1 : 0;
            add_tokens(&f, s, pos, ids[s] + pos, step ? 1 : lengths[s],
                       BS_PLAN_SEQ_ALL_LOGITS | (step ? 0 : BS_PLAN_SEQ_PREFILL));
        }
        const float *row = run_plan(&f).logits;
        for (int i = 0; i < N_SEQS; i++) {
            int s = (i + step) % N_SEQS, pos = step ? lengths[s] + step - 1 : 0, n = step ? 1 : lengths[s];
            memcpy(together[s] + (size_t)pos * (size_t)f.n_vocab, row, (size_t)(n * f.n_vocab) * sizeof *row);
            row += n * f.n_vocab;
        }
    }
    for (int s = 0; s < N_SEQS; s++) {
        assert_near(together[s], alone[s], lengths[s] + N_DECODE, TOL_ENGINE_F16);
        free(alone[s]);
        free(together[s]);
    }
    close_engine(&f);
}

static void forks_go_on_alike(void **state)
{
    enum { N = 600, FORK_AT = 590 };
    int32_t ids[N];
    float *parent = new_logits(N), *child = new_logits(N);
    bs_engine_config config = make_config("int4");
    config.chunk_tokens = 128;
    open_engine(&f, &config);
    make_ids(&f, 4, ids, N);
    start(0, N, &greedy);
    prefill(0, ids, 0, FORK_AT, (int[]){128}, 1, parent);
    begin_plan(&f);
    bs_plan_start *fork = add_start(&f, 3, N, &greedy);
    fork->from = 0;
    run_plan(&f);
    for (int pos = FORK_AT; pos < N; pos++) {
        begin_plan(&f);
        add_tokens(&f, 0, pos, ids + pos, 1, BS_PLAN_SEQ_ALL_LOGITS);
        add_tokens(&f, 3, pos, ids + pos, 1, BS_PLAN_SEQ_ALL_LOGITS);
        const float *rows = run_plan(&f).logits;
        memcpy(parent + (size_t)pos * (size_t)f.n_vocab, rows, (size_t)f.n_vocab * sizeof *rows);
        memcpy(child + (size_t)pos * (size_t)f.n_vocab, rows + f.n_vocab, (size_t)f.n_vocab * sizeof *rows);
    }
    size_t at = (size_t)FORK_AT * (size_t)f.n_vocab;
    assert_near(child + at, parent + at, N - FORK_AT, TOL_ENGINE_F16);
    close_engine(&f);
    free(parent);
    free(child);
}

/* ---- memory -----------------------------------------------------------------------------------------------
 */

static void opening_takes_what_was_planned(void **state)
{
    bs_engine_memory memory;
    bs_grid grid = *bs_comm_grid(f.comm);
    const char *formats[] = {"f16", "int4", "int2"};
    for (int i = 0; i < 3; i++) {
        bs_engine_config config = make_config(formats[i]);
        bs_weights *weights;
        bs_shard shard;
        config.all_logits = i != 1;
        size_t before = bs_device_allocated_bytes(f.device);
        assert_ok(bs_shard_compute(f.model, &grid, config.merge, &shard));
        assert_ok(bs_weights_place(f.model, f.device, &shard, BS_TYPE_F32, NULL, NULL, &weights));
        size_t norms = bs_device_allocated_bytes(f.device) - before;
        bs_weights_free(weights);
        assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &memory));
        before = bs_device_allocated_bytes(f.device);
        open_engine(&f, &config);
        size_t taken = bs_device_allocated_bytes(f.device) - before - norms;
        uint64_t host = config.all_logits ? (uint64_t)config.max_step_tokens * (uint64_t)f.n_vocab * 4 : 0;
        uint64_t planned = memory.cache.f16_pool_bytes + memory.cache.quant_pool_bytes +
                           memory.activation_bytes + memory.workspace_bytes + memory.logits_bytes - host;
        /* Beyond these: tables of cache and step, of which a part is host memory; and each region's rounding
         * up. */
        assert_int_equal(taken + norms, memory.device_bytes);
        assert_true(taken >= planned);
        assert_true(taken <= planned + memory.cache.table_bytes + memory.plan_bytes + 16 * 4096);
        close_engine(&f);
    }
}

/* What a cap refuses is said with what would fit, before anything is taken; just enough is enough. */
static void a_cap_is_kept(void **state)
{
    bs_grid grid = *bs_comm_grid(f.comm);
    bs_engine_config config = make_config("f16"), fits;
    bs_engine_memory memory;
    bs_device *whole = f.device, *device;
    bs_engine *engine = NULL;
    config.max_context = 1 << 16;
    config.total_tokens = 4 << 16;
    assert_ok(bs_engine_plan_memory(f.model, whole, &grid, &config, &memory));
    for (int less = 0; less < 2; less++) {
        bs_device_config capped = {.n_threads = 1, .memory_cap = memory.device_bytes - (size_t)less};
        assert_ok(bs_device_open(&capped, &device));
        assert_int_equal(bs_device_memory_left(device), capped.memory_cap);
        bs_status status = bs_engine_open(f.model, device, f.comm, &config, NULL, NULL, &engine);
        assert_int_equal(status, less ? BS_STATUS_NOMEM : BS_STATUS_OK);
        if (!less) {
            assert_int_equal(bs_device_memory_left(device), 0);
            bs_engine_close(engine);
        } else {
            long long tokens;
            assert_int_equal(bs_engine_check_memory(f.model, device, &grid, &config), BS_STATUS_NOMEM);
            const char *say = strstr(bs_error_message(), "a context of ");
            assert_non_null(strstr(bs_error_message(), "--device-mem: "));
            assert_non_null(say);
            assert_int_equal(sscanf(say, "a context of %lld tokens would fit", &tokens), 1);
            assert_non_null(strstr(bs_error_message(), ", 65536 on 2 such devices"));
            bs_error_clear();
            assert_int_equal(bs_device_allocated_bytes(device), 0);
            fits = config;
            fits.max_context = tokens;
            fits.total_tokens = 4 * tokens;
            assert_in_range(tokens, 32768, 65535);
            assert_ok(bs_engine_check_memory(f.model, device, &grid, &fits));
        }
        bs_buffer *buffer;
        assert_int_equal(bs_buffer_alloc(device, capped.memory_cap + 1, "a buffer", &buffer),
                         BS_STATUS_NOMEM);
        assert_non_null(strstr(bs_error_message(), "a buffer: "));
        bs_error_clear();
        bs_device_close(device);
    }
}

static void decoding_allocates_nothing(void **state)
{
    const char *formats[] = {"f16", "int4", "int2"};
    for (int i = 0; i < 3; i++) {
        bs_sampling sampling = {.temperature = 1, .top_p = 0.9f, .repeat_penalty = 1.1f, .seed = 1};
        bs_engine_config config = make_config(formats[i]);
        config.all_logits = false;
        open_engine(&f, &config);
        int32_t ids[400], last = BS_PLAN_LAST_TOKEN;
        make_ids(&f, 5, ids, 400);
        begin_plan(&f);
        add_start(&f, 0, 1000, &sampling);
        add_tokens(&f, 0, 0, ids, 400, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE);
        run_plan(&f);
        uint64_t count = bs_device_allocation_count(f.device);
        size_t bytes = bs_device_allocated_bytes(f.device);
        int64_t mallocs = n_mallocs;
        for (int pos = 400; pos < 700; pos++) {
            begin_plan(&f);
            add_tokens(&f, 0, pos, &last, 1, BS_PLAN_SEQ_SAMPLE);
            run_plan(&f);
        }
        assert_int_equal(bs_device_allocation_count(f.device), count);
        assert_int_equal(bs_device_allocated_bytes(f.device), bytes);
        assert_int_equal(n_mallocs, mallocs);
        close_engine(&f);
    }
}

static void bad_configurations_are_named(void **state)
{
    bs_engine_memory memory;
    const struct {
        int max_seqs, max_prefill, max_tokens;
        int64_t context;
        const char *word;
    } cases[] = {{0, 1, 8, 99, "max_seqs"},         {9999, 1, 9999, 99, "max_seqs"},
                 {2, 3, 8, 99, "max_prefill_seqs"}, {2, 0, 8, 99, "max_prefill_seqs"},
                 {4, 1, 3, 99, "max_step_tokens"},  {1, 1, 99999, 99, "max_step_tokens"},
                 {1, 1, 8, 0, "max_context"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bs_engine_config config = make_config("f16");
        config.max_seqs = cases[i].max_seqs;
        config.max_prefill_seqs = cases[i].max_prefill;
        config.max_step_tokens = cases[i].max_tokens;
        config.max_context = cases[i].context;
        bs_status status = bs_engine_plan_memory(f.model, f.device, bs_comm_grid(f.comm), &config, &memory);
        assert_int_equal(status, BS_STATUS_RANGE);
        assert_non_null(strstr(bs_error_message(), cases[i].word));
        bs_error_clear();
    }
}

/* ---- drawing ----------------------------------------------------------------------------------------------
 */

/* Draws n tokens after a prompt; each is fed back as the last token. */
static void generate(const int32_t *prompt, int n_prompt, const bs_sampling *sampling, int n, int32_t *out)
{
    int32_t last = BS_PLAN_LAST_TOKEN;
    begin_plan(&f);
    add_start(&f, 1, n_prompt + n, sampling);
    add_tokens(&f, 1, 0, prompt, n_prompt, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE);
    out[0] = run_plan(&f).token[0];
    for (int i = 1; i < n; i++) {
        begin_plan(&f);
        add_tokens(&f, 1, n_prompt + i - 1, &last, 1, BS_PLAN_SEQ_SAMPLE);
        out[i] = run_plan(&f).token[0];
    }
    stop(1);
}

static void seeds_repeat_the_draw(void **state)
{
    enum { N = 60 };
    int32_t prompt[20], a[N], b[N], c[N];
    bs_sampling sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 11};
    bs_engine_config config = make_config("int4");
    open_engine(&f, &config);
    make_ids(&f, 6, prompt, 20);
    generate(prompt, 20, &sampling, N, a);
    generate(prompt, 20, &sampling, N, b);
    sampling.seed = 12;
    generate(prompt, 20, &sampling, N, c);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    close_engine(&f);
}

/* The draw is the position's, however the position was reached. A prompt of one id repeated has the same
 * logits at every position (all V are equal), so what is drawn there differs by the position's random number
 * alone. */
static void draws_belong_to_positions(void **state)
{
    enum { N_POSITIONS = 30 };
    int32_t prompt[N_POSITIONS], whole[N_POSITIONS], n_changes = 0;
    bs_sampling sampling = {.temperature = 2, .top_p = 1, .repeat_penalty = 1, .seed = 5};
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    for (int i = 0; i < N_POSITIONS; i++) prompt[i] = 77;
    for (int n = 1; n < N_POSITIONS; n++) {
        generate(prompt, n, &sampling, 1, &whole[n]);
        if (n > 1) n_changes += whole[n] != whole[n - 1];
    }
    assert_true(n_changes > N_POSITIONS / 2);
    start(1, N_POSITIONS, &sampling);
    for (int n = 1; n < N_POSITIONS; n++) {
        begin_plan(&f);
        add_tokens(&f, 1, n - 1, prompt, 1, BS_PLAN_SEQ_SAMPLE | (n == 1 ? BS_PLAN_SEQ_PREFILL : 0));
        assert_int_equal(run_plan(&f).token[0], whole[n]);
    }
    close_engine(&f);
}

/* Greedy: the drawn token is the best of the logits, and its log-probability that of the softmax. */
static void greedy_takes_the_best(void **state)
{
    int32_t prompt[30];
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 7, prompt, 30);
    begin_plan(&f);
    add_start(&f, 1, 31, &greedy);
    add_tokens(&f, 1, 0, prompt, 30, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE | BS_PLAN_SEQ_ALL_LOGITS);
    bs_step_result result = run_plan(&f);
    const float *logits = result.logits + 29 * f.n_vocab;
    int best = 0;
    double sum = 0;
    for (int i = 1; i < f.n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    for (int i = 0; i < f.n_vocab; i++) sum += exp((double)logits[i] - logits[best]);
    assert_int_equal(result.token[0], best);
    assert_true(fabs(result.logprob[0] + log(sum)) <= TOL_ENGINE_LOGPROB);
    close_engine(&f);
}

/* A penalty so large that no id of prompt or answer can be the best again. */
static void penalty_forbids_repeats(void **state)
{
    enum { N_PROMPT_IDS = 40, N = 60 };
    int32_t ids[N_PROMPT_IDS + N];
    bs_sampling sampling = {.top_p = 1, .repeat_penalty = 1000};
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 8, ids, N_PROMPT_IDS);
    generate(ids, N_PROMPT_IDS, &sampling, N, ids + N_PROMPT_IDS);
    for (int i = N_PROMPT_IDS; i < N_PROMPT_IDS + N; i++)
        for (int j = 0; j < i; j++) assert_int_not_equal(ids[i], ids[j]);
    close_engine(&f);
}

/* A fork goes on from the token drawn last, and knows the ids that its parent may not repeat. */
static void forks_draw_alike(void **state)
{
    enum { N_PROMPT_IDS = 30, N = 40, FORK_AT = 5 };
    int32_t ids[N_PROMPT_IDS + N], last = BS_PLAN_LAST_TOKEN;
    bs_sampling sampling = {.top_p = 1, .repeat_penalty = 1000};
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 15, ids, N_PROMPT_IDS);
    begin_plan(&f);
    add_start(&f, 0, N_PROMPT_IDS + N, &sampling);
    add_tokens(&f, 0, 0, ids, N_PROMPT_IDS, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE);
    ids[N_PROMPT_IDS] = run_plan(&f).token[0];
    for (int i = N_PROMPT_IDS + 1; i < N_PROMPT_IDS + N; i++) {
        const bool forked = i >= N_PROMPT_IDS + FORK_AT;
        begin_plan(&f);
        if (i == N_PROMPT_IDS + FORK_AT) add_start(&f, 2, N_PROMPT_IDS + N, &sampling)->from = 0;
        add_tokens(&f, 0, i - 1, &last, 1, BS_PLAN_SEQ_SAMPLE);
        if (forked) add_tokens(&f, 2, i - 1, &last, 1, BS_PLAN_SEQ_SAMPLE);
        bs_step_result result = run_plan(&f);
        ids[i] = result.token[0];
        if (forked) assert_int_equal(result.token[1], ids[i]);
        for (int j = 0; j < i; j++) assert_int_not_equal(ids[i], ids[j]);
    }
    close_engine(&f);
}

/* Answers of one prompt and seed differ by the number of their draw alone. */
static void draws_have_numbers(void **state)
{
    enum { N = 20 };
    const int32_t id = 77;
    int n_differ = 0;
    bs_sampling sampling = {.temperature = 2, .top_p = 1, .repeat_penalty = 1, .seed = 5};
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    for (int i = 0; i < 3; i++) start(i, N, &sampling);
    for (int pos = 0; pos < N; pos++) {
        begin_plan(&f);
        for (int i = 0; i < 3; i++) {
            add_tokens(&f, i, pos, &id, 1, BS_PLAN_SEQ_SAMPLE | (pos == 0 ? BS_PLAN_SEQ_PREFILL : 0));
            bs_plan_seqs(f.plan)[i].draw = i == 1; /* 0, 1, 0 */
        }
        bs_step_result result = run_plan(&f);
        assert_int_equal(result.token[0], result.token[2]);
        n_differ += result.token[0] != result.token[1];
    }
    assert_true(n_differ > N / 2);
    close_engine(&f);
}

/* ---- errors and the loop ----------------------------------------------------------------------------------
 */

static void impossible_plans_are_refused(void **state)
{
    bs_step_result result;
    int32_t last = BS_PLAN_LAST_TOKEN, id = 5;
    bs_engine_config config = make_config("f16");
    config.all_logits = false;
    open_engine(&f, &config);
    start(0, 100, &greedy);
    for (int i = 0; i < 5; i++) {
        begin_plan(&f);
        if (i == 0) add_start(&f, 0, 100, &greedy);                       /* in use */
        if (i == 1) add_free(&f, 1);                                      /* not in use */
        if (i == 2) add_tokens(&f, 0, 3, &id, 1, 0);                      /* not its length */
        if (i == 3) add_tokens(&f, 1, 0, &id, 1, 0);                      /* not started */
        if (i == 4) add_tokens(&f, 0, 0, &id, 1, BS_PLAN_SEQ_ALL_LOGITS); /* no room for these */
        assert_int_not_equal(bs_engine_step(f.engine, f.plan, &result), BS_STATUS_OK);
        assert_string_not_equal(bs_error_message(), "");
        bs_error_clear();
    }
    close_engine(&f);
    open_engine(&f, &config);
    start(0, 100, &greedy);
    begin_plan(&f);
    add_tokens(&f, 0, 0, &last, 1, 0); /* nothing drawn yet */
    assert_int_not_equal(bs_engine_step(f.engine, f.plan, &result), BS_STATUS_OK);
    assert_non_null(strstr(bs_error_message(), "drawn"));
    bs_error_clear();
    close_engine(&f);
}

/* A second engine that uses the first one's weights takes nothing for them, draws the same, and leaves them behind. */
static void weights_may_be_another_engines(void **state)
{
    enum { N = 6 };
    int32_t prompt[20], own[N], shared[N], again[N];
    bs_grid grid = *bs_comm_grid(f.comm);
    bs_engine_memory with, without;
    bs_engine_config config = make_config("int4");
    open_engine(&f, &config);
    bs_engine *first = f.engine;
    make_ids(&f, 14, prompt, 20);
    generate(prompt, 20, &greedy, N, own);
    assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &with));
    config.weights_of = first;
    assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &without));
    assert_int_equal(without.weight_bytes, 0);
    bs_shard shard;
    assert_ok(bs_shard_compute(f.model, &grid, config.merge, &shard));
    assert_int_equal(with.weight_bytes, bs_shard_weight_bytes(f.model, &shard));
    assert_int_equal(with.device_bytes - without.device_bytes,
                     bs_shard_placed_bytes(f.model, f.device, &shard));
    size_t before = bs_device_allocated_bytes(f.device);
    assert_ok(bs_engine_open(f.model, f.device, f.comm, &config, NULL, NULL, &f.engine));
    assert_true(bs_device_allocated_bytes(f.device) - before <= without.device_bytes);
    generate(prompt, 20, &greedy, N, shared);
    assert_memory_equal(own, shared, sizeof own);
    bs_engine_close(f.engine);
    f.engine = first;
    assert_int_equal(bs_device_allocated_bytes(f.device), before);
    generate(prompt, 20, &greedy, N, again);
    assert_memory_equal(own, again, sizeof own);
    close_engine(&f);
}

/* Two steps submitted before either is collected, again and again, draw what steps one by one draw. */
static void two_steps_may_be_in_flight(void **state)
{
    enum { N = 9 };
    int32_t prompt[5], one_by_one[N], drawn[N], last = BS_PLAN_LAST_TOKEN;
    bs_step_result result;
    bs_engine_config config = make_config("int4");
    open_engine(&f, &config);
    make_ids(&f, 12, prompt, 5);
    generate(prompt, 5, &greedy, N, one_by_one);
    for (int i = 0; i < N; i++) {
        begin_plan(&f);
        if (i == 0) {
            add_start(&f, 1, 5 + N, &greedy);
            add_tokens(&f, 1, 0, prompt, 5, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE);
        } else {
            add_tokens(&f, 1, 4 + i, &last, 1, BS_PLAN_SEQ_SAMPLE);
        }
        assert_ok(bs_engine_submit(f.engine, f.plan));
        if (i == 0) continue;
        assert_ok(bs_engine_collect(f.engine, &result));
        drawn[i - 1] = result.token[0];
    }
    begin_plan(&f);
    add_tokens(&f, 1, 4 + N, &last, 1, BS_PLAN_SEQ_SAMPLE);
    assert_ok(bs_engine_submit(f.engine, f.plan));
    begin_plan(&f);
    assert_int_equal(bs_engine_submit(f.engine, f.plan), BS_STATUS_INTERNAL); /* a third */
    bs_error_clear();
    assert_ok(bs_engine_collect(f.engine, &result));
    drawn[N - 1] = result.token[0];
    assert_ok(bs_engine_collect(f.engine, &result));
    assert_int_equal(bs_engine_collect(f.engine, &result), BS_STATUS_INTERNAL); /* nothing is left */
    bs_error_clear();
    assert_memory_equal(drawn, one_by_one, sizeof drawn);
    close_engine(&f);
}

/* A driver that prefills a prompt of 5 and decodes to the end, or fails where it is told to. */
typedef struct script {
    int32_t prompt[5], answer[8];
    int n_planned, n_results, n_told, fail_plan, fail_result;
} script;

static bs_status script_plan(void *context, bs_plan *plan)
{
    script *s = context;
    int i = s->n_planned++;
    if (i == s->fail_plan) return bs_fail(BS_STATUS_NOMEM, "planned failure");
    assert_true(s->n_results >= i - 1); /* one step ahead, no more */
    if (i == 8) {
        plan->flags = BS_PLAN_STOP;
        return BS_STATUS_OK;
    }
    plan->n_seqs = 1;
    plan->n_tokens = i ? 1 : 5;
    bs_plan_seqs(plan)[0] = (bs_plan_seq){.n_tokens = plan->n_tokens,
                                          .pos0 = i ? 4 + i : 0,
                                          .flags = BS_PLAN_SEQ_SAMPLE | (i ? 0 : BS_PLAN_SEQ_PREFILL)};
    bs_plan_tokens(plan)[0] = BS_PLAN_LAST_TOKEN;
    if (i > 0) return BS_STATUS_OK;
    memcpy(bs_plan_tokens(plan), s->prompt, sizeof s->prompt);
    plan->n_starts = 1;
    bs_plan_starts(plan)[0] = (bs_plan_start){.n_tokens = 20, .from = -1, .sampling = greedy};
    return BS_STATUS_OK;
}

static bs_status script_result(void *context, const bs_plan *plan, const bs_step_result *result)
{
    script *s = context;
    assert_int_equal(plan->n_seqs, 1);
    s->n_told++;
    if (s->n_results == s->fail_result) return bs_fail(BS_STATUS_IO, "planned failure");
    s->answer[s->n_results++] = result->token[0];
    return BS_STATUS_OK;
}

static bs_status run_script(script *s)
{
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    make_ids(&f, 9, s->prompt, 5);
    bs_status status = bs_engine_run(f.engine, &(bs_driver){s, script_plan, script_result});
    close_engine(&f);
    bs_error_clear();
    return status;
}

static void loop_runs_one_plan_ahead(void **state)
{
    script s = {.fail_plan = -1, .fail_result = -1};
    int32_t answer[8];
    assert_int_equal(run_script(&s), BS_STATUS_OK);
    assert_int_equal(s.n_results, 8);
    bs_engine_config config = make_config("f16");
    open_engine(&f, &config);
    generate(s.prompt, 5, &greedy, 8, answer);
    close_engine(&f);
    assert_memory_equal(answer, s.answer, sizeof answer);
}

static void loop_returns_the_drivers_error(void **state)
{
    for (int at = 0; at < 8; at++) {
        script s = {.fail_plan = at, .fail_result = -1};
        assert_int_equal(run_script(&s), BS_STATUS_NOMEM);
        assert_int_equal(s.n_results, at); /* what was planned before is carried out */
        s = (script){.fail_plan = -1, .fail_result = at};
        assert_int_equal(run_script(&s), BS_STATUS_IO);
        assert_int_equal(s.n_results, at);
        assert_int_equal(s.n_told, at + 1); /* and not of the step that was planned already */
    }
}

/* Graphs are kept for few numbers of rows, and a batch is padded by half of it at most. */
static void rows_are_padded_to_few_sizes(void **state)
{
    static bs_engine e;
    int n_sizes = 0, last = 0;
    e.config.max_seqs = 250;
    for (int n = 1; n <= 250; n++) {
        const int size = bs_engine_padded_rows(&e, n);
        assert_in_range(size, n, n + n / 2);
        assert_in_range(size, last, 250);
        assert_int_equal(bs_engine_padded_rows(&e, size), size);
        n_sizes += size != last;
        last = size;
    }
    assert_int_equal(last, 250);
    assert_true(n_sizes <= 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_do_not_matter),
        cmocka_unit_test(cuts_do_not_change_what_is_quantized),
        cmocka_unit_test(decode_equals_prefill),
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(forks_go_on_alike),
        cmocka_unit_test(opening_takes_what_was_planned),
        cmocka_unit_test(a_cap_is_kept),
        cmocka_unit_test(weights_may_be_another_engines),
        cmocka_unit_test(decoding_allocates_nothing),
        cmocka_unit_test(bad_configurations_are_named),
        cmocka_unit_test(seeds_repeat_the_draw),
        cmocka_unit_test(draws_belong_to_positions),
        cmocka_unit_test(greedy_takes_the_best),
        cmocka_unit_test(penalty_forbids_repeats),
        cmocka_unit_test(forks_draw_alike),
        cmocka_unit_test(draws_have_numbers),
        cmocka_unit_test(impossible_plans_are_refused),
        cmocka_unit_test(two_steps_may_be_in_flight),
        cmocka_unit_test(loop_runs_one_plan_ahead),
        cmocka_unit_test(loop_returns_the_drivers_error),
        cmocka_unit_test(rows_are_padded_to_few_sizes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
