/* merge.h: how the sequence shards of a head shard join their partial softmax states.
 *
 * The rule is one (DESIGN §3, kernels.h); the methods differ in what travels:
 *  allreduce  maximum of LSE, then the sum of [O·w, w]: two small all-reduces; simplest, the reference
 *  allgather  one packed message [O, LSE] from each, merged locally in rank order 0…: the same bits on every
 * rank fold       LSE only; each rank's O, weighted, is summed by o_proj's all-reduce, so every sequence
 * shard keeps o_proj's columns of all its heads (fixed when the weights are placed)
 */
#ifndef BS_MERGE_H
#define BS_MERGE_H

#include "comm/comm.h"

typedef enum bs_merge_method { BS_MERGE_ALLREDUCE, BS_MERGE_ALLGATHER, BS_MERGE_FOLD } bs_merge_method;

/* "allreduce", "allgather", "fold"; BS_STATUS_USAGE names the value. */
bs_status bs_merge_method_parse(const char *text, bs_merge_method *out);
const char *bs_merge_method_name(bs_merge_method method);

/* Device bytes that bs_merge_states needs for at most max_rows rows. */
size_t bs_merge_workspace_bytes(bs_merge_method method, int group_size, int max_rows, int dim);

/* Merges this rank's o [rows, D] and lse [rows] (rows = tokens × heads, [device] f32) with those of the other
 * sequence shards, in place. allreduce and allgather leave the merged state on every shard; fold leaves lse
 * alone and this rank's O weighted, so that the sum of O over the shards is the merged O. One shard: nothing
 * happens. Collective over BS_GROUP_SEQ, stream-ordered. */
bs_status bs_merge_states(bs_comm *comm, bs_stream *stream, bs_merge_method method, float *o, float *lse,
                          int n_rows, int dim, void *workspace, size_t workspace_bytes);

#endif
