/* unrotate.c: turns the merged O back into the model's basis, and rounds it to the activations' type. */
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/hadamard.h"

bs_status bs_cpu_unrotate(bs_stream *stream, const bs_unrotate_args *args)
{
    if (args->act != BS_TYPE_F32)
        return bs_fail(BS_STATUS_UNSUPPORTED, "unrotate to %s: a CPU's activations are F32",
                       bs_type_name(args->act));
    const size_t row_bytes = (size_t)args->dim * sizeof(float);
    float *out = args->out;
    if (out != args->o) memmove(out, args->o, (size_t)args->n_rows * row_bytes);
    if (!args->hadamard) return BS_STATUS_OK;
    for (int r = 0; r < args->n_rows; r++)
        bs_cpu_hadamard(stream->device->info.isa, out + (size_t)r * (size_t)args->dim, args->dim);
    return BS_STATUS_OK;
}
