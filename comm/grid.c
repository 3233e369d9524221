/* grid.c: choosing heads × seq. Pure arithmetic, no MPI. */
#include "comm/comm.h"
#include "src/base/status.h"

#include <stdio.h>

bs_status bs_grid_choose(int rank, int size, int n_kv_heads, const char *text, bs_grid *out)
{
    int heads = 0, seq = 0;
    if (text) {
        char rest;
        if (sscanf(text, "%dx%d%c", &heads, &seq, &rest) != 2 || heads < 1 || seq < 1)
            return bs_fail(BS_STATUS_USAGE, "--grid %s: must be HEADSxSEQ, as 2x4", text);
        if (heads > size || seq > size || heads * seq != size)
            return bs_fail(BS_STATUS_USAGE, "--grid %s: has %lld ranks, the job has %d", text,
                           (long long)heads * seq, size);
        if (n_kv_heads % heads != 0)
            return bs_fail(BS_STATUS_USAGE, "--grid %s: %d head shards do not divide the model's %d KV heads",
                           text, heads, n_kv_heads);
    } else {
        for (heads = size < n_kv_heads ? size : n_kv_heads; size % heads != 0 || n_kv_heads % heads != 0;)
            heads--;
        seq = size / heads;
    }
    *out = (bs_grid){.rank = rank,
                     .size = size,
                     .heads = heads,
                     .seq = seq,
                     .head_shard = rank / seq,
                     .seq_shard = rank % seq};
    return BS_STATUS_OK;
}
