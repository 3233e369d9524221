/* eval.h: `bitshard eval`: one text through a model with several cache formats side by side. Private to cmd_eval.c (set-up
 * and the run), eval_text.c (windows) and eval_report.c (figures, table, CSV, JSON). */
#ifndef BS_CLI_EVAL_H
#define BS_CLI_EVAL_H

#include "src/base/progress.h"
#include "src/cache/format.h"
#include "src/cli/common.h"
#include "src/engine/forced.h"
#include "src/engine/score.h"
#include "src/model/tokenizer.h"

enum { BS_EVAL_MAX_FORMATS = 64, BS_EVAL_STEP = BS_PAGE_TOKENS };

/* One cache format with an engine of its own, and on rank 0 what was found so far. */
typedef struct bs_eval_format {
    const char *name;
    bs_kv_format kv;
    bs_engine *engine;
    bs_forced *forced;
    double nll;     /* sum */
    int64_t n_same; /* predictions with the reference's best token */
    float *kl;      /* [n_predicted at most] */
} bs_eval_format;

/* A part of the text that is one sequence: tokens first … first + n − 1, of which those from `counted` on are predicted
 * for the first time. */
typedef struct bs_eval_window {
    int64_t first, n, counted;
} bs_eval_window;

typedef struct bs_eval {
    const bs_options *options;
    bs_comm *comm;
    bool leader;
    bs_engine_config config; /* but for kv */
    bs_grid grid;
    bs_model *model;
    bs_device *device;
    bs_tokenizer *tokenizer; /* rank 0 */

    char *list;                                      /* --kv, cut at its commas */
    bs_eval_format formats[BS_EVAL_MAX_FORMATS + 1]; /* 0: f16, the reference of all */
    int n_formats;
    int n_asked;                            /* items of --kv */
    const char *names[BS_EVAL_MAX_FORMATS]; /* as they were asked for */
    int asked[BS_EVAL_MAX_FORMATS];         /* the format of each: every f16 is the reference */

    bs_tokens text;
    int64_t n_text;  /* its tokens */
    int32_t bos;     /* each window's first token, −1: none */
    int64_t context; /* tokens of a window, its begin token included; of the text if that is one pass */
    int64_t overlap; /* tokens that windows share */
    bool one_pass;

    int64_t n_predicted, every, next_row; /* so far; tokens from row to row of --csv, and of the next */
    json_t *rows;
    FILE *table, *csv; /* NULL: none */
    bool csv_begun;
    bs_progress load, progress;
} bs_eval;

/* ---- eval_text.c ---- */

/* Rank 0: reads --text, and decides on windows. */
bs_status bs_eval_read_text(bs_eval *e);
bs_eval_window bs_eval_first_window(const bs_eval *e);
/* False behind the last one. */
bool bs_eval_next_window(const bs_eval *e, bs_eval_window *w);
/* Tokens that an engine is fed for a window: all but the last, which nothing follows. */
int64_t bs_eval_window_steps(const bs_eval *e, const bs_eval_window *w);

/* ---- eval_report.c: rank 0 ---- */

/* Opens what --csv names, and decides where the table goes. Close it also where this failed. */
bs_status bs_eval_open_report(bs_eval *e);
/* Takes the scores of all formats of the prediction of the text's token `index`. */
bs_status bs_eval_take(bs_eval *e, const bs_score *scores, int64_t index);
/* The table, the last rows of --csv, the line of --json. */
bs_status bs_eval_report(bs_eval *e);
bs_status bs_eval_close_report(bs_eval *e);

#endif
