/* silu_avx512.c: the rows of silu_simd.h with 16 floats a vector. */
#include "kernels/cpu/cpu_ops.h"

#if defined(__x86_64__)
#include "kernels/cpu/vec_avx512.h"

#define W        16
#define SILU_ROW bs_cpu_silu_row_avx512
#include "kernels/cpu/silu_simd.h"
#endif
