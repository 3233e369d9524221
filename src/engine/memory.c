/* memory.c: where everything lies, and so how much memory a rank takes.
 *
 * One function lays out every region from the model's description, the grid and the configuration. Opening
 * takes exactly that; bs_engine_plan_memory prints it for --dry-run before a job is queued.
 */
#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/engine/engine_private.h"

#include <stdio.h>

enum { MAX_SEQS = 1024, MAX_STEP_TOKENS = 65536 };

/* Takes the next `bytes` of a region; every array begins at a multiple of 256 bytes. */
static size_t carve(size_t *end, uint64_t bytes)
{
    size_t at = *end;
    *end = at + (size_t)bs_ceil_div((int64_t)bytes, 256) * 256;
    return at;
}

static bs_status check_config(const bs_engine_config *c)
{
    if (c->max_seqs < 1 || c->max_seqs > MAX_SEQS)
        return bs_fail(BS_STATUS_RANGE, "max_seqs %d: must be 1 … %d", c->max_seqs, MAX_SEQS);
    if (c->max_prefill_seqs < 1 || c->max_prefill_seqs > c->max_seqs)
        return bs_fail(BS_STATUS_RANGE, "max_prefill_seqs %d: must be 1 … max_seqs, %d", c->max_prefill_seqs,
                       c->max_seqs);
    if (c->max_step_tokens < c->max_seqs || c->max_step_tokens > MAX_STEP_TOKENS)
        return bs_fail(BS_STATUS_RANGE, "max_step_tokens %d: must be max_seqs, %d, … %d", c->max_step_tokens,
                       c->max_seqs, MAX_STEP_TOKENS);
    if (c->max_context < 1 || c->max_context > INT32_MAX - MAX_STEP_TOKENS)
        return bs_fail(BS_STATUS_RANGE, "max_context %lld: must be 1 … %d", (long long)c->max_context,
                       INT32_MAX - MAX_STEP_TOKENS);
    return BS_STATUS_OK;
}

bs_status bs_engine_vocab_shards(const bs_model *model, const bs_grid *grid, bs_merge_method merge,
                                 bs_range *ranges, int64_t *most)
{
    int64_t n_most = 0;
    for (int rank = 0; rank < grid->size; rank++) {
        bs_grid other = *grid;
        other.rank = rank;
        other.head_shard = rank / grid->seq;
        other.seq_shard = rank % grid->seq;
        bs_shard shard;
        BS_TRY(bs_shard_compute(model, &other, merge, &shard));
        if (ranges) ranges[rank] = shard.vocab;
        n_most = bs_max_i64(n_most, shard.vocab.n);
    }
    *most = n_most;
    return BS_STATUS_OK;
}

static void lay_out_activations(bs_engine_layout *l, const bs_model_desc *desc)
{
    uint64_t act = (uint64_t)bs_type_block_bytes(l->act), t = (uint64_t)l->max_tokens;
    uint64_t hidden = t * (uint64_t)l->n_hidden, heads = t * (uint64_t)l->n_heads * (uint64_t)l->head_dim;
    uint64_t kv = t * (uint64_t)l->n_kv_heads * (uint64_t)l->head_dim, ffn = t * (uint64_t)l->shard.ffn.n;
    size_t end = 0;
    l->act_at.x = carve(&end, hidden * sizeof(float));
    l->act_at.sum = carve(&end, hidden * sizeof(float));
    l->act_at.normed = carve(&end, hidden * act);
    /* q, k and v follow each other, and gate and up: rows of one product where their matrices are one. q, k and v stay
     * f32 until K and V are rounded to fp16 once, behind RoPE: rounded twice, more codes of a page would change. */
    l->act_at.q = carve(&end, heads * sizeof(float));
    l->act_at.k = carve(&end, kv * sizeof(float));
    l->act_at.v = carve(&end, kv * sizeof(float));
    l->act_at.o = carve(&end, heads * sizeof(float));
    l->act_at.lse = carve(&end, t * (uint64_t)l->n_heads * sizeof(float));
    l->act_at.attended = l->act == BS_TYPE_F32 ? l->act_at.o : carve(&end, heads * act);
    l->act_at.gate = carve(&end, ffn * act);
    l->act_at.up = carve(&end, ffn * act);
    l->act_at.cos_sin = carve(&end, t * (uint64_t)desc->n_rot * sizeof(float));
    bool chain = l->act != BS_TYPE_F32; /* on a GPU */
    l->act_at.x_other = carve(&end, chain ? (uint64_t)l->n_hidden * sizeof(float) : 0);
    l->act_at.counter = carve(&end, chain ? BS_CHAIN_COUNTERS * sizeof(uint64_t) : 0);
    l->act_at.bytes = end;
}

static void lay_out_workspace(bs_engine_layout *l, const bs_model *model, const bs_device *device,
                              const bs_grid *grid, const bs_engine_config *config,
                              const bs_cache_memory *cache)
{
    int64_t heads = (int64_t)l->n_heads * l->head_dim, rows = bs_max_i64(l->logit_rows, l->max_seqs);
    const bool joined = !bs_model_is_mapped(model, device); /* as there (activations) */
    int64_t ffn = l->shard.ffn.n, kv = (int64_t)l->n_kv_heads * l->head_dim;
    size_t sizes[] = {
        /* q; k and v are smaller */
        bs_gemm_workspace_bytes(device, joined ? heads + 2 * kv : heads, l->n_hidden, l->max_tokens),
        bs_gemm_workspace_bytes(device, l->n_hidden, l->shard.o_cols.n, l->max_tokens),
        bs_gemm_workspace_bytes(device, joined ? 2 * ffn : ffn, l->n_hidden, l->max_tokens),
        bs_gemm_workspace_bytes(device, l->n_hidden, ffn, l->max_tokens),
        bs_gemm_workspace_bytes(device, l->shard.vocab.n, l->n_hidden, (int)rows)};
    l->work.gemm = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i] > l->work.gemm) l->work.gemm = sizes[i];
    /* Enough for each of a step's calls, which have smaller bounds. */
    l->work.attend = bs_attend_workspace_bytes(device, &l->cache.shape, l->n_heads, l->max_seqs,
                                               l->max_tokens, cache->max_pages);
    l->work.merge = bs_merge_workspace_bytes(config->merge, grid->seq, l->max_tokens * l->n_heads,
                                             l->head_dim);
    size_t shared = l->work.gemm > l->work.merge ? l->work.gemm : l->work.merge;
    l->work.shared = (shared + 255) & ~(size_t)255;
    l->work.bytes = l->work.shared + l->work.attend;
}

static void lay_out_logits(bs_engine_layout *l, const bs_model_desc *desc)
{
    uint64_t act = (uint64_t)bs_type_block_bytes(l->act), n = (uint64_t)l->n_ranks, b = (uint64_t)l->max_seqs;
    uint64_t v = (uint64_t)l->max_vocab, all_rows = (uint64_t)l->logit_rows;
    uint64_t sampled = b * v, gathered = (uint64_t)l->logit_parts * all_rows * v;
    size_t end = 0;
    l->logits_at.normed = carve(&end, (b > all_rows ? b : all_rows) * (uint64_t)l->n_hidden * act);
    l->logits_at.raw = carve(&end, (sampled > gathered ? sampled : gathered) * sizeof(float));
    l->logits_at.candidates = carve(&end, n * b * v * sizeof(bs_candidate));
    l->logits_at.lse = carve(&end, n * b * sizeof(float));
    l->logits_at.scratch = carve(&end, n * v * sizeof(bs_candidate));
    l->logits_at.token = carve(&end, b * sizeof(int32_t));
    l->logits_at.logprob = carve(&end, b * sizeof(float));
    l->logits_at.last = carve(&end, b * sizeof(int32_t));
    l->logits_at.bytes = end;
    l->seen_bytes = (size_t)bs_ceil_div(desc->n_vocab, 64 * 32) * 256;
}

static void lay_out_inputs(bs_engine_layout *l, const bs_plan_limits *limits)
{
    uint64_t t = (uint64_t)l->max_tokens, b = (uint64_t)l->max_seqs;
    size_t end = 0;
    l->input_at.tokens = carve(&end, t * sizeof(int32_t));
    l->input_at.rows = carve(&end, (t + b) * sizeof(int32_t));
    l->input_at.row_slot = carve(&end, b * sizeof(int32_t));
    l->input_at.sampling = carve(&end, b * sizeof(bs_sampling));
    l->input_at.seen = carve(&end, b * sizeof(uint64_t *));
    l->input_at.position = carve(&end, b * sizeof(int32_t));
    l->input_at.draw = carve(&end, b * sizeof(int32_t));
    l->input_at.bytes = end;
    l->host_bytes = 2 * (end + bs_engine_drawn_bytes(l) + (size_t)b * sizeof(int32_t) +
                         bs_plan_bytes(limits)) +
                    (size_t)b * (sizeof(bs_engine_seq) + sizeof(bs_cache_step_seq) + sizeof(bs_engine_span) +
                                 sizeof(int32_t) + sizeof(float)) +
                    (size_t)l->n_ranks * sizeof(bs_range);
}

bs_status bs_engine_lay_out(const bs_model *model, const bs_device *device, const bs_grid *grid,
                            const bs_engine_config *config, bs_engine_layout *out)
{
    const bs_model_desc *desc = bs_model_get_desc(model);
    bs_engine_layout l = {.max_tokens = config->max_step_tokens,
                          .max_seqs = config->max_seqs,
                          .n_ranks = grid->size,
                          .n_hidden = desc->n_hidden,
                          .head_dim = desc->head_dim,
                          .act = bs_model_act_type(model, device, config->act)};
    BS_TRY(check_config(config));
    BS_TRY(bs_shard_compute(model, grid, config->merge, &l.shard));
    BS_TRY(bs_engine_vocab_shards(model, grid, config->merge, NULL, &l.max_vocab));
    l.n_heads = (int)l.shard.heads.n;
    l.n_kv_heads = (int)l.shard.kv_heads.n;
    l.cache = (bs_cache_config){
        .shape = {desc->n_layers, l.n_kv_heads, desc->head_dim, config->kv},
        .seq = grid->seq,
        .seq_shard = grid->seq_shard,
        .stripe_pages = config->stripe_pages,
        .chunk_tokens = config->chunk_tokens,
        .max_seqs = config->max_seqs,
        .max_prefill_seqs = config->max_prefill_seqs,
        .max_step_tokens = config->max_step_tokens,
        .max_context = config->max_context,
        .total_tokens = config->total_tokens,
    };
    bs_cache_memory cache;
    BS_TRY(bs_cache_plan_memory(device, &l.cache, &cache));
    if (config->all_logits) {
        l.logit_rows = (int)bs_min_i64(l.max_tokens, BS_ALL_LOGITS_ROWS);
        l.logit_parts = config->shard_logits ? 1 : grid->size;
        int64_t n = config->shard_logits ? l.shard.vocab.n : grid->rank == 0 ? desc->n_vocab : 0;
        l.all_logits_bytes = (size_t)l.max_tokens * (size_t)n * sizeof(float);
    }
    bs_plan_limits limits = {config->max_seqs, config->max_step_tokens};
    lay_out_activations(&l, desc);
    lay_out_logits(&l, desc);
    lay_out_workspace(&l, model, device, grid, config, &cache);
    lay_out_inputs(&l, &limits);
    *out = l;
    return BS_STATUS_OK;
}

bs_status bs_engine_plan_memory(const bs_model *model, const bs_device *device, const bs_grid *grid,
                                const bs_engine_config *config, bs_engine_memory *out)
{
    bs_engine_layout l;
    bs_cache_memory cache;
    bs_snapshots_memory snapshots = {0};
    BS_TRY(bs_engine_lay_out(model, device, grid, config, &l));
    BS_TRY(bs_cache_plan_memory(device, &l.cache, &cache));
    if (config->snapshots) BS_TRY(bs_snapshots_plan_memory(device, &l.cache, &snapshots));
    uint64_t placed = bs_shard_placed_bytes(model, device, &l.shard), used = placed;
    if (bs_model_is_mapped(model, device)) used = bs_shard_weight_bytes(model, &l.shard);
    if (config->weights_of) placed = used = 0;
    *out = (bs_engine_memory){
        .weight_bytes = used,
        .cache = cache,
        .activation_bytes = l.act_at.bytes,
        .workspace_bytes = l.work.bytes,
        .logits_bytes = l.logits_at.bytes + (uint64_t)l.max_seqs * l.seen_bytes + l.all_logits_bytes,
        .plan_bytes = l.input_at.bytes + l.host_bytes,
        .snapshot_bytes = snapshots.device_bytes + snapshots.host_bytes,
        .device_bytes = placed + cache.quant_pool_bytes + cache.f16_pool_bytes + cache.table_bytes +
                        l.act_at.bytes + l.work.bytes + l.logits_at.bytes +
                        (uint64_t)l.max_seqs * l.seen_bytes + l.input_at.bytes + snapshots.device_bytes,
    };
    return BS_STATUS_OK;
}

/* ---- what fits --------------------------------------------------------------------------------------------
 */

static bool fits(const bs_model *model, const bs_device *device, const bs_grid *grid,
                 const bs_engine_config *config, uint64_t left)
{
    bs_engine_memory memory;
    if (bs_engine_plan_memory(model, device, grid, config, &memory) == BS_STATUS_OK)
        return memory.device_bytes <= left;
    bs_error_clear(); /* a shape that cannot be is one that does not fit */
    return false;
}

/* The longest context, in whole blocks, that fits with as many sequences of it; 0: none. */
static int64_t longest_context(const bs_model *model, const bs_device *device, const bs_grid *grid,
                               const bs_engine_config *config, uint64_t left)
{
    int64_t low = 0, high = config->max_context / BS_BLOCK_TOKENS;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        bs_engine_config shorter = *config;
        shorter.max_context = middle * BS_BLOCK_TOKENS;
        shorter.total_tokens = bs_min_i64(config->total_tokens, shorter.max_context * config->max_seqs);
        if (fits(model, device, grid, &shorter, left)) low = middle;
        else high = middle - 1;
    }
    return low * BS_BLOCK_TOKENS;
}

/* The least number of such devices, a power of two, on which everything fits; 0: none up to 1024. The first rank has
 * the largest share of everything. */
static int fewest_ranks(const bs_model *model, const bs_device *device, const bs_engine_config *config,
                        uint64_t left)
{
    for (int n = 2; n <= 1024; n *= 2) {
        bs_grid grid;
        if (bs_grid_choose(0, n, bs_model_get_desc(model)->n_kv_heads, NULL, &grid) != BS_STATUS_OK)
            bs_error_clear();
        else if (fits(model, device, &grid, config, left)) return n;
    }
    return 0;
}

bs_status bs_engine_check_memory(const bs_model *model, const bs_device *device, const bs_grid *grid,
                                 const bs_engine_config *config)
{
    const bs_device_info *info = bs_device_get_info(device);
    bs_engine_memory m;
    BS_TRY(bs_engine_plan_memory(model, device, grid, config, &m));
    size_t left = bs_device_memory_left(device);
    if (m.device_bytes <= left) return BS_STATUS_OK;
    char need[32], have[32], cache[32], context[64] = "no context", ranks[64] = "";
    bs_format_bytes(m.device_bytes, need, sizeof need);
    bs_format_bytes(left, have, sizeof have);
    bs_format_bytes(m.cache.quant_pool_bytes + m.cache.f16_pool_bytes, cache, sizeof cache);
    int64_t tokens = longest_context(model, device, grid, config, left);
    int n = fewest_ranks(model, device, config, left);
    if (tokens > 0) snprintf(context, sizeof context, "a context of %lld tokens", (long long)tokens);
    if (n > 0) snprintf(ranks, sizeof ranks, ", %lld on %d such devices", (long long)config->max_context, n);
    return bs_fail(BS_STATUS_NOMEM,
                   "%s: %s are needed, %s of them for the cache, and %s are left: %s would fit%s",
                   info->memory_cap > 0 ? "--device-mem" : info->name, need, cache, have, context, ranks);
}
