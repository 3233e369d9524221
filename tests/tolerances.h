/* tolerances.h: every tolerance of the tests, each beside its reason. Widening one is a commit of its own, with the
 * measured distribution. One section a directory of tests. */
#ifndef BS_TOLERANCES_H
#define BS_TOLERANCES_H

/* ---- tests/comm ---- */
/* Merging 40 partial states in f32 in any grouping, against fp64: a few roundings of 6e-8 each, 40 terms. */
#define TOL_MERGE_O   1e-6
#define TOL_MERGE_LSE 1e-6 /* relative above |LSE| = 1, absolute below */

/* ---- model files ------------------------------------------------------------------------------------------- */

/* inv_freq against exp(−2i/n_rot · ln θ), relative: a few f64 roundings of an exponent up to 35. */
#define BS_TOL_INV_FREQ 1e-13

#endif
