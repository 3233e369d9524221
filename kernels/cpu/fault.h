/* fault.h: how the CPU's append and quantize find NaN and infinity and say where. bs_stream_check reports it.
 */
#ifndef BS_CPU_FAULT_H
#define BS_CPU_FAULT_H

#include "kernels/backend.h"

/* Whether n fp16 numbers are all finite. No early exit: the compiler makes vectors of it. */
static inline bool bs_cpu_all_finite(const bs_f16 *x, size_t n)
{
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (uint16_t)(-((x[i] & 0x7c00) == 0x7c00));
    return bad == 0;
}

/* Keeps the first fault since the last bs_stream_check. Threads of one op may race: one of them wins whole.
 */
static inline void bs_cpu_fault_set(bs_stream *stream, int layer, int kv_head, uint32_t slot, int token,
                                    bool is_v)
{
    bs_numeric_fault *fault = &stream->fault;
    int32_t expected = 0;
    if (!__atomic_compare_exchange_n(&fault->seen, &expected, 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    fault->layer = layer;
    fault->kv_head = kv_head;
    fault->slot = (int32_t)slot;
    fault->token = token;
    fault->is_v = is_v;
}

#endif
