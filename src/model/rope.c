/* rope.c: RoPE's frequencies in f64, once, when a model is opened. */
#include "config.h"
#include "src/model/rope.h"

#include <math.h>

static const double TWO_PI = 6.283185307179586;

static double llama3(const bs_rope_scaling *s, double freq)
{
    double turns = s->original_context * freq / TWO_PI;
    if (turns < s->low_freq_factor) return freq / s->factor;
    if (turns > s->high_freq_factor) return freq;
    double kept = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - kept) * freq / s->factor + kept * freq;
}

/* The channel pair, as a real number, that turns so often in the original context. */
static double yarn_pair(const bs_model_desc *desc, const bs_rope_scaling *s, double turns)
{
    return desc->n_rot * log(s->original_context / (turns * TWO_PI)) / (2 * log(desc->rope_theta));
}

static double yarn(const bs_model_desc *desc, const bs_rope_scaling *s, int pair, double freq)
{
    double first = yarn_pair(desc, s, s->beta_fast), last = yarn_pair(desc, s, s->beta_slow);
    if (!s->fractional) {
        first = floor(first);
        last = ceil(last);
    }
    first = fmax(first, 0);
    last = fmin(last, desc->n_rot - 1);
    if (first == last) last += 0.001;
    double stretched = fmin(fmax((pair - first) / (last - first), 0), 1);
    return freq / s->factor * stretched + freq * (1 - stretched);
}

double bs_rope_yarn_scale(double factor, double m)
{
    return factor > 1 ? 0.1 * m * log(factor) + 1 : 1;
}

void bs_rope_fill(bs_model_desc *desc, const bs_rope_scaling *s)
{
    desc->rope_kind = s->kind;
    desc->rope_attention_factor = 1;
    for (int i = 0; i < desc->n_rot / 2; i++) {
        double freq = pow(desc->rope_theta, -2.0 * i / desc->n_rot);
        switch (s->kind) {
        case BS_ROPE_PLAIN: break;
        case BS_ROPE_LINEAR: freq /= s->factor; break;
        case BS_ROPE_LLAMA3: freq = llama3(s, freq); break;
        case BS_ROPE_YARN: freq = yarn(desc, s, i, freq); break;
        }
        desc->inv_freq[i] = freq;
    }
    if (s->kind != BS_ROPE_YARN) return;
    desc->rope_attention_factor = (float)(s->attention_factor > 0 ? s->attention_factor
                                                                  : bs_rope_yarn_scale(s->factor, 1));
}

const char *bs_rope_kind_name(bs_rope_kind kind)
{
    static const char *const names[] = {"plain", "linear", "llama3", "yarn"};
    return names[kind];
}
