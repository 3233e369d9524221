/* rope.h: the frequencies of rotary position embeddings under the scalings that models use. */
#ifndef BS_ROPE_H
#define BS_ROPE_H

#include "src/model/model.h"

/* How a model was stretched beyond the context that it was first trained for.
 *   linear   every frequency / factor
 *   llama3   frequencies that turn fewer than low_freq_factor times in the original context / factor, those that turn
 *            more than high_freq_factor times as they are, between them a linear mix (Llama 3.1)
 *   yarn     the same idea counted in channels between beta_fast and beta_slow turns, and cos and sin multiplied by an
 *            attention factor (Peng et al. 2023, arXiv 2309.00071) */
typedef struct bs_rope_scaling {
    bs_rope_kind kind;
    double factor;
    double original_context;                  /* llama3, yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;                  /* yarn; 0: by its factor */
    bool fractional; /* yarn: ends of the mix between channels, not rounded outwards */
} bs_rope_scaling;

/* YaRN's attention factor: 0.1 m ln(factor) + 1, m 1 but where a file says another. */
double bs_rope_yarn_scale(double factor, double m);
/* Fills desc's rope_kind, inv_freq and rope_attention_factor from its rope_theta and n_rot. Values were checked by
 * whoever read them: theta > 1, factor > 0, original_context ≥ 1, low < high. */
void bs_rope_fill(bs_model_desc *desc, const bs_rope_scaling *scaling);

#endif
