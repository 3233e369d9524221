/* merge.c: partial softmax states of the sequence shards become one. Three ways to move them; merge.h says
 * which is when better. Everything local is a kernel of the device, so the same lines serve CPUs and GPUs. */
#include "comm/merge.h"

#include "src/base/checked.h"

#include <string.h>

static const char *const names[] = {"allreduce", "allgather", "fold"};

bs_status bs_merge_method_parse(const char *text, bs_merge_method *out)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (bs_merge_method)i;
            return BS_STATUS_OK;
        }
    return bs_fail(BS_STATUS_USAGE, "--merge %s: must be allreduce, allgather or fold", text);
}

const char *bs_merge_method_name(bs_merge_method method)
{
    return names[method];
}

size_t bs_merge_workspace_bytes(bs_merge_method method, int group_size, int max_rows, int dim)
{
    if (group_size == 1) return 0;
    size_t rows = (size_t)max_rows, ranks = (size_t)group_size, row = (size_t)dim + 1;
    switch (method) {
    case BS_MERGE_ALLREDUCE: return (rows + rows * row) * sizeof(float); /* maxima; [O·w, w] */
    case BS_MERGE_ALLGATHER: return ranks * rows * row * sizeof(float);  /* [O, LSE] of each rank */
    case BS_MERGE_FOLD: return ranks * rows * sizeof(float);             /* LSE of each rank */
    }
    return 0;
}

static bs_status merge_allreduce(bs_comm *comm, bs_stream *stream, float *o, float *lse, int n_rows, int dim,
                                 float *workspace)
{
    float *max = workspace, *sum = workspace + n_rows;
    BS_TRY(bs_copy_on_device(stream, max, lse, (size_t)n_rows * sizeof *lse));
    BS_TRY(bs_comm_allreduce_max(comm, BS_GROUP_SEQ, stream, max, (size_t)n_rows));
    BS_TRY(bs_op_merge_weigh(
        stream, &(bs_merge_weigh_args){
                    .n_rows = n_rows, .dim = dim, .o = o, .lse = lse, .lse_max = max, .out = sum}));
    BS_TRY(bs_comm_allreduce_sum(comm, BS_GROUP_SEQ, stream, sum, (size_t)n_rows * ((size_t)dim + 1)));
    return bs_op_merge_finish(
        stream, &(bs_merge_finish_args){
                    .n_rows = n_rows, .dim = dim, .sum = sum, .lse_max = max, .o = o, .lse = lse});
}

static bs_status merge_allgather(bs_comm *comm, bs_stream *stream, float *o, float *lse, int n_rows, int dim,
                                 float *workspace)
{
    int n_parts = bs_comm_group_size(comm, BS_GROUP_SEQ), part = bs_comm_group_rank(comm, BS_GROUP_SEQ);
    size_t o_floats = (size_t)n_rows * (size_t)dim, stride = o_floats + (size_t)n_rows;
    float *mine = workspace + (size_t)part * stride;
    BS_TRY(bs_copy_on_device(stream, mine, o, o_floats * sizeof *o));
    BS_TRY(bs_copy_on_device(stream, mine + o_floats, lse, (size_t)n_rows * sizeof *lse));
    BS_TRY(bs_comm_allgather(comm, BS_GROUP_SEQ, stream, mine, workspace, stride * sizeof *o));
    return bs_op_merge(stream, &(bs_merge_args){.n_parts = n_parts,
                                                .n_rows = n_rows,
                                                .dim = dim,
                                                .o = workspace,
                                                .lse = workspace + o_floats,
                                                .o_stride = (int64_t)stride,
                                                .lse_stride = (int64_t)stride,
                                                .o_out = o,
                                                .lse_out = lse});
}

static bs_status merge_fold(bs_comm *comm, bs_stream *stream, float *o, const float *lse, int n_rows, int dim,
                            float *workspace)
{
    int n_parts = bs_comm_group_size(comm, BS_GROUP_SEQ), part = bs_comm_group_rank(comm, BS_GROUP_SEQ);
    BS_TRY(bs_comm_allgather(comm, BS_GROUP_SEQ, stream, lse, workspace, (size_t)n_rows * sizeof *lse));
    return bs_op_merge_fold(
        stream,
        &(bs_merge_fold_args){
            .n_parts = n_parts, .part = part, .n_rows = n_rows, .dim = dim, .lse_all = workspace, .o = o});
}

bs_status bs_merge_states(bs_comm *comm, bs_stream *stream, bs_merge_method method, float *o, float *lse,
                          int n_rows, int dim, void *workspace, size_t workspace_bytes)
{
    int group = bs_comm_group_size(comm, BS_GROUP_SEQ);
    if (group == 1 || n_rows == 0) return BS_STATUS_OK;
    size_t need = bs_merge_workspace_bytes(method, group, n_rows, dim);
    if (workspace_bytes < need)
        return bs_fail(BS_STATUS_RANGE, "merge: workspace of %zu bytes, %zu are needed", workspace_bytes,
                       need);
    switch (method) {
    case BS_MERGE_ALLREDUCE: return merge_allreduce(comm, stream, o, lse, n_rows, dim, workspace);
    case BS_MERGE_ALLGATHER: return merge_allgather(comm, stream, o, lse, n_rows, dim, workspace);
    case BS_MERGE_FOLD: return merge_fold(comm, stream, o, lse, n_rows, dim, workspace);
    }
    return bs_fail(BS_STATUS_INTERNAL, "merge method %d", (int)method);
}
