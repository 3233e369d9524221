/* silu_avx2.c: the rows of silu_simd.h with 8 floats a vector. */
#include "kernels/cpu/cpu_ops.h"

#if defined(__x86_64__)
#include "kernels/cpu/vec_avx2.h"

#define W        8
#define SILU_ROW bs_cpu_silu_row_avx2
#include "kernels/cpu/silu_simd.h"
#endif
