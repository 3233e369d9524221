/* fault.h: how kernels say that K, V or a logit is NaN or infinity: one thread of all launches since the
 * last bs_stream_fault wins the claim and writes the record, which backend.cu reads then. The
 * record is pinned host memory, so that a step without a fault, every step, costs no copy. */
#ifndef BS_CUDA_FAULT_H
#define BS_CUDA_FAULT_H

#include "kernels/cuda/cuda_private.h"
#include "kernels/fault_kind.h"

static __device__ __noinline__ void bs_cuda_fault_set(bs_cuda_fault fault, int layer, int kv_head,
                                                      uint32_t slot, int token, bool is_v)
{
    if (atomicCAS(fault.claimed, 0, 1) != 0) return;
    fault.record->layer = layer;
    fault.record->kv_head = kv_head;
    fault.record->slot = (int32_t)slot;
    fault.record->token = token;
    fault.record->is_v = is_v;
    __threadfence_system();
    fault.record->seen = 1;
}

/* kind: BS_FAULT_LOGIT or BS_FAULT_NO_CANDIDATE; number: the id or the position. */
static __device__ __noinline__ void bs_cuda_fault_set_logit(bs_cuda_fault fault, int kind, int number)
{
    if (atomicCAS(fault.claimed, 0, 1) != 0) return;
    fault.record->slot = kind;
    fault.record->token = number;
    __threadfence_system();
    fault.record->seen = 1;
}

#endif
