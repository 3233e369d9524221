/* tolerances.h: every tolerance of the tests, each beside its reason. Widening one is a commit of its own, with the
 * measured distribution. One section a directory of tests. */
#ifndef BS_TOLERANCES_H
#define BS_TOLERANCES_H

/* ---- tests/comm ---- */
/* Merging 40 partial states in f32 in any grouping, against fp64: a few roundings of 6e-8 each, 40 terms. */
#define TOL_MERGE_O 1e-6
/* A partial LSE is rounded to f32: half an ulp of it is an absolute error of the exponent, so of the weights. Two of them. */
#define TOL_MERGE_O_LSE 1.2e-7
#define TOL_MERGE_LSE   1e-6 /* relative above |LSE| = 1, absolute below */

/* ---- model files ------------------------------------------------------------------------------------------- */

/* inv_freq against exp(−2i/n_rot · ln θ), relative: a few f64 roundings of an exponent up to 35. */
#define TOL_INV_FREQ 1e-13
/* Matrices of make-model, in units of the planned standard deviation: 32768 or more values, 6 standard errors of mean
 * and deviation (0.033, 0.023), and 4-bit rounding, which adds 1 % to the deviation; Q4_K's and Q6_K's scales are drawn,
 * which adds as much again. */
#define TOL_MAKE_MODEL_MEAN 0.04
#define TOL_MAKE_MODEL_STD  0.04

/* ---- tests/kernels: dense ops ---- */
/* A dot product of up to 600 terms in f32, relative to the sum of |x| times the row's largest weight:
 * roundings of 6e-8 that mostly cancel. */
#define TOL_GEMM 1e-6
/* On a GPU, relative to the sum of |w x| of up to 14336 terms: tensor cores cut each sum of 16 products to f32 instead of
 * rounding it, so errors add up. To outputs of 16 bits their own rounding is added. */
#define TOL_GEMM_GPU 2e-6
/* A scale from an f32 sum of squares, 1/sqrtf and two products: a few roundings of 6e-8. */
#define TOL_NORM_GPU 1e-6
/* expf within 2 ulp, a division, a product. */
#define TOL_SILU_GPU 1e-6
/* Log-sum-exp (absolute), and what is subtracted from it: parts of 4,096 summed in f32. */
#define TOL_LSE_GPU 2e-6

/* ---- cache kernels ----------------------------------------------------------------------------------------- */

/* cos and sin against f64, times an attention factor of 1.25: two roundings of 6e-8 and the product's. */
#define TOL_ROPE_TABLE 2e-7
/* H x / √D of normal values (|y| ≤ 5) against the matrix in f64: seven butterflies, each within 6e-8 of values up to
 * 60 before the scaling by 0.09. */
#define TOL_HADAMARD 4e-6
/* cos and sin of a GPU against the CPU's, in units of the last place: the f64 functions differ by 2 ulp of f64 at most,
 * which moves the rounding to f32 by one place, and the product with the attention factor by one more. */
#define TOL_GPU_ROPE_ULPS 2

/* ---- engine ------------------------------------------------------------------------------------------------ */

/* Logits of the same tokens by other shapes of the same sums (GEMV or GEMM, one page split or another): worst row's
 * relative L2. f32 sums differ by 1e-6; an fp16 K or V that rounds the other way is 5e-4 of one element of many. */
#define TOL_ENGINE_F16 1e-4
/* The same with a 4-bit cache: an ulp of K can flip a code, a 15th of its group's range (DESIGN §7: 0.01 measured). */
#define TOL_ENGINE_INT4 0.05
/* Logits against an f64 forward pass that rounds K and V to fp16 too: what the first line allows, once more. */
#define TOL_ENGINE_REFERENCE 3e-4
/* The same with quantized pages: what the formats lose on this model, whose attention is peaked. Measured 0.0033 at 8
 * bits, 0.058 at 4, 0.11 and 0.21 with V, then K too, at 2; twice that is allowed, a lost rotation or norm gives 1. */
#define TOL_ENGINE_LOSS_INT8 0.007
#define TOL_ENGINE_LOSS_INT4 0.12
#define TOL_ENGINE_LOSS_K4V2 0.25
#define TOL_ENGINE_LOSS_INT2 0.45
/* Logits of small random models against transformers in float32 whose attention rounds K and V to fp16 as well, relative
 * L2 of the middle and of the worst row of 23. f32 sums differ by 1e-6; a K or V that rounds the other way (a few of 10,000
 * do) is 5e-4 of one element, which these models' peaked attention may amplify. Measured 4e-6 … 9e-5 and 1.5e-5 … 2.4e-4. */
#define TOL_HF_LOGITS_MIDDLE 2e-4
#define TOL_HF_LOGITS_WORST  6e-4
/* The same against transformers as it is: every K and V is rounded, 2.4e-4 each. Measured 5e-4 … 1.7e-3. */
#define TOL_HF_LOGITS_EXACT 3e-3
/* Greedy tokens may differ where the two best logits are closer than this (DESIGN §7: on another grid logits with an f16
 * cache are within 1e-3, relative). */
#define TOL_MARGIN 0.05
/* log-softmax in f32 against f64 over 600 ids. */
#define TOL_ENGINE_LOGPROB 1e-5
/* Log-sum-exp of 1,000 f32 logits in f64, relative: a thousand roundings of 1e-16. KL has ten times the terms' size. */
#define TOL_SCORE 1e-13

/* Logits on a GPU against the CPU's, relative L2 (a row's, or of all positions): activations and weights are rounded to 16
 * bits at every step, 2.4e-4 each in f16 and 2e-3 in bf16; attention allows TOL_ATTEND_GPU_O.
 * Measured, 4 layers, one H200: 6.3e-4 and 5.3e-3 of all positions, 8.7e-3 at bf16's worst. */
#define TOL_GPU_LOGITS      5e-3
#define TOL_GPU_LOGITS_BF16 2e-2
/* Perplexity of 4,096 positions on a GPU against the CPU's (issue of the engine on GPUs). */
#define TOL_GPU_PERPLEXITY      2e-3
#define TOL_GPU_PERPLEXITY_INT2 1e-2
/* Mean KL of the same, tiny model. Two orders of summation of its f32 differ by 8e-10 (f16) … 6e-5 (int2), which 16-bit
 * activations cannot meet. The measure is what rounding its weights to f16, one of a GPU's roundings of that size, makes
 * on a CPU by itself: 8.2e-7, 2.7e-6, 8.3e-5, 2.5e-4, 7.7e-4. Ten times that is allowed: roundings of activations (norm, q,
 * k and v, attention, SiLU) triple the error, so KL grows ninefold. */
#define TOL_GPU_KL_F16  8e-6
#define TOL_GPU_KL_INT8 3e-5
#define TOL_GPU_KL_INT4 8e-4
#define TOL_GPU_KL_K4V2 2.5e-3
#define TOL_GPU_KL_INT2 8e-3

/* ---- tests/kernels: attention ---- */
/* Worst (token, head) over the dequantized cache: relative L2 of O, absolute LSE. f32 sums of scores up to 100 in size
 * (outlier channels) are off by a few ulp of them, and so is the exponent: measured 6e-6 and 1.7e-5 over 260 cases. */
#define TOL_ATTEND_O   2e-5
#define TOL_ATTEND_LSE 5e-5
/* On GPUs, plain data: factors of codes have 15 and 16 bits, p of f16 pages is rounded to fp16. Measured 6e-4 and 3e-4.
 * The issue allows 2e-3 and 1e-3. */
#define TOL_ATTEND_GPU_O   1e-3
#define TOL_ATTEND_GPU_LSE 1e-3
/* With outlier channels and huge logits, the worst row of a case: at most this times the worst that exact arithmetic on the
 * dequantized cache, rounded to fp16, gives, and never more than the last two. Row by row it would be a ratio of two
 * draws, of which one may happen to be small. */
#define TOL_ATTEND_GPU_ROUNDED 1.5
#define TOL_ATTEND_GPU_MAX_O   3e-3
#define TOL_ATTEND_GPU_MAX_LSE 5e-3
/* Chunks of 17 query tokens and more multiply fp16 tiles of the cache, so these cases have what that rounding alone makes:
 * O 1.5e-3 … 5.1e-3 and LSE 4.6e-3 … 1.0e-2 over seven of them. */
#define TOL_ATTEND_CHUNK_MAX_O   1e-2
#define TOL_ATTEND_CHUNK_MAX_LSE 2e-2

/* The dense chain against fp64 that rounds where it rounds, relative L2 of a token. A sum in f32 that differs in its last
 * bits rounds to the neighbouring value of act now and then: of the n, f and out that are rounded at most a few in a hundred
 * by one unit (2^-11, 2^-8), and out itself once more by half a unit. */
#define TOL_CHAIN_F16  5e-4
#define TOL_CHAIN_BF16 4e-3

#endif
