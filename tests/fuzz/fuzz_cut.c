/* fuzz_cut.c: the shards of any model that could be opened, and its weights placed. */
#include "tests/fuzz/fuzz.h"

static void place(const bs_model *model, const bs_shard *shard)
{
    static bs_device *device;
    bs_weights *weights;
    if (!device) FUZZ_CHECK(bs_device_open(&(bs_device_config){.n_threads = 1}, &device) == BS_STATUS_OK);
    bs_status status = bs_weights_place(model, device, shard, BS_TYPE_F32, NULL, NULL, &weights);
    if (status != BS_STATUS_OK) fuzz_expect_line(status);
    else bs_weights_free(weights);
}

void fuzz_cut(const bs_model *model)
{
    const bs_model_desc *desc = bs_model_get_desc(model);
    for (int size = 1; size <= 5; size++) {
        int64_t ffn = 0, vocab = 0;
        for (int rank = 0; rank < size; rank++) {
            bs_grid grid;
            bs_shard shard;
            FUZZ_CHECK(bs_grid_choose(rank, size, desc->n_kv_heads, NULL, &grid) == BS_STATUS_OK);
            bs_status status = bs_shard_compute(model, &grid, BS_MERGE_ALLREDUCE, &shard);
            if (status != BS_STATUS_OK) {
                fuzz_expect_line(status);
                return;
            }
            ffn += shard.ffn.n;
            vocab += shard.vocab.n;
            if (size == 3) place(model, &shard);
        }
        FUZZ_CHECK(ffn == desc->n_ffn && vocab == desc->n_vocab);
    }
}
