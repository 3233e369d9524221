/* hadamard.h: the rotation of a head vector, x ← H x / √D with H in Sylvester order (docs/kv-format.md). */
#ifndef BS_CPU_HADAMARD_H
#define BS_CPU_HADAMARD_H

#include "kernels/kernels.h"

/* In place over dim floats, dim a power of two, any alignment. The same bits for every isa. Its own inverse
 * up to rounding. */
void bs_cpu_hadamard(bs_isa isa, float *x, int dim);

#endif
