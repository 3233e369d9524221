/* cmd_snapshot.c: `bitshard snapshot ls|show|verify|export|gc DIR`: directories as they lie on the disk. Needs no model and
 * no ranks.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/common.h"
#include "src/cli/table.h"
#include "src/snapshot/inspect.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct task {
    const bs_options *options;
    const char *dir, *file;
    int64_t number;
    bool json;
    bs_progress progress;
    const char *what;
} task;

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    task *t = context;
    bs_progress_follow(&t->progress, t->what, done, total, bs_log_get_level() > BS_LOG_QUIET);
}

/* ---- ls ---- */

static json_t *item_json(const bs_snapshot_item *i)
{
    json_t *row = json_pack("{s:I,s:b,s:s}", "number", (json_int_t)i->number, "whole",
                            i->status == BS_STATUS_OK, "error", i->line);
    if (!i->readable) return row;
    json_t *rest = json_pack("{s:I,s:I,s:I,s:I,s:b,s:I,s:i,s:{s:i,s:i},s:s,s:s,s:s}", "created",
                             (json_int_t)i->created_s, "cached", (json_int_t)i->n_cached, "tokens",
                             (json_int_t)i->n_tokens, "prompt", (json_int_t)i->n_prompt, "finished",
                             i->finished, "bytes", (json_int_t)i->bytes, "segments", i->n_segments, "grid",
                             "heads", i->heads, "seq", i->seq, "id", i->id, "kv", i->kv, "architecture",
                             i->architecture);
    if (row && rest) json_object_update(row, rest);
    json_decref(rest);
    return row;
}

static bs_status print_item(const bs_snapshot_item *i)
{
    char created[32] = "", bytes[32];
    struct tm tm;
    const time_t when = (time_t)i->created_s;
    if (!i->readable) return bs_cli_print("%8" PRId64 "  %s\n", i->number, i->line);
    if (gmtime_r(&when, &tm)) strftime(created, sizeof created, "%Y-%m-%d %H:%M:%S", &tm);
    bs_format_bytes(i->bytes, bytes, sizeof bytes);
    return bs_cli_print("%8" PRId64 "  %-19s %10" PRId64 " %10" PRId64 " %8d %11s  %-32s %s\n", i->number,
                        created, i->n_cached, i->n_tokens, i->n_segments, bytes, i->kv,
                        i->status != BS_STATUS_OK ? i->line
                        : i->finished             ? "whole, finished"
                                                  : "whole");
}

static bs_status list(task *t)
{
    bs_snapshot_item *items;
    int n;
    BS_TRY(bs_snapshot_list(t->dir, &items, &n));
    bs_status status = BS_STATUS_OK;
    if (t->json) {
        json_t *rows = json_array();
        for (int i = 0; i < n; i++) json_array_append_new(rows, item_json(&items[i]));
        status = bs_cli_print_json(rows);
    } else {
        status = bs_cli_print("%8s  %-19s %10s %10s %8s %11s  %-32s %s\n", "number", "created (UTC)",
                              "cached", "tokens", "segments", "size", "kv", "state");
        for (int i = 0; status == BS_STATUS_OK && i < n; i++) status = print_item(&items[i]);
    }
    free(items);
    return status;
}

/* ---- show ---- */

static bs_status print_object(json_t *object, const char *prefix)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, key);
        if (json_is_string(value)) BS_TRY(bs_cli_print("%-36s %s\n", name, json_string_value(value)));
        else if (json_is_integer(value))
            BS_TRY(bs_cli_print("%-36s %" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value)));
        else if (json_is_real(value)) BS_TRY(bs_cli_print("%-36s %.9g\n", name, json_real_value(value)));
        else if (json_is_boolean(value))
            BS_TRY(bs_cli_print("%-36s %s\n", name, json_is_true(value) ? "yes" : "no"));
        else if (json_is_object(value) && strcmp(key, "datasets") != 0) {
            snprintf(name, sizeof name, "%s%s.", prefix, key);
            BS_TRY(print_object(value, name));
        }
    }
    return BS_STATUS_OK;
}

static bs_status print_segments(json_t *segments)
{
    size_t i;
    json_t *segment;
    json_array_foreach(segments, i, segment)
    {
        char bytes[32];
        bs_format_bytes((uint64_t)json_integer_value(json_object_get(segment, "bytes")), bytes, sizeof bytes);
        BS_TRY(bs_cli_print("segment %-28zu pages %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT
                            ", %s, %s\n",
                            i, json_integer_value(json_object_get(segment, "first_page")),
                            json_integer_value(json_object_get(segment, "end_page")) - 1, bytes,
                            json_string_value(json_object_get(segment, "file"))));
    }
    return BS_STATUS_OK;
}

static bs_status show(task *t)
{
    char *text;
    BS_TRY(bs_snapshot_show(t->dir, t->number, &text));
    json_t *manifest = json_loads(text, 0, NULL);
    free(text);
    if (t->json || !manifest) return bs_cli_print_json(manifest);
    bs_status status = print_object(manifest, "");
    if (status == BS_STATUS_OK) status = print_segments(json_object_get(manifest, "segments"));
    json_decref(manifest);
    return status;
}

/* ---- verify, export ---- */

static bs_status print_checked(task *t, const bs_snapshot_checked *c, double seconds)
{
    char bytes[32];
    if (t->json)
        return bs_cli_print_json(json_pack("{s:I,s:b,s:I,s:I,s:I,s:f}", "number", (json_int_t)c->number,
                                           "whole", 1, "cached", (json_int_t)c->n_cached, "pages",
                                           (json_int_t)c->n_pages, "bytes", (json_int_t)c->bytes, "seconds",
                                           seconds));
    bs_format_bytes(c->bytes, bytes, sizeof bytes);
    return bs_cli_print("snapshot %" PRId64 ": %" PRId64 " tokens, %" PRId64
                        " pages of a layer's head, %s: %s in %.2f s "
                        "(%.2f GB/s)\n",
                        c->number, c->n_cached, c->n_pages, bytes, t->file ? "exported" : "whole", seconds,
                        seconds > 0 ? (double)c->bytes / seconds * 1e-9 : 0);
}

static bs_status verify(task *t)
{
    bs_snapshot_checked checked;
    const double start = bs_now_s();
    t->what = "verify";
    BS_TRY(bs_snapshot_check(t->dir, t->number, on_progress, t, &checked));
    return print_checked(t, &checked, bs_now_s() - start);
}

static bs_status export(task *t)
{
    bs_snapshot_checked checked;
    const double start = bs_now_s();
    t->what = "export";
    BS_TRY(bs_snapshot_export(t->dir, t->number, t->file, on_progress, t, &checked));
    return print_checked(t, &checked, bs_now_s() - start);
}

/* ---- gc ---- */

static bs_status collect(task *t)
{
    int n = 0;
    uint64_t freed = 0;
    char bytes[32];
    const bool dry = bs_options_flag(t->options, "dry-run");
    BS_TRY(bs_snapshot_gc(t->dir, (int)bs_options_int(t->options, "snapshot-keep"), dry, "", &n, &freed));
    if (t->json)
        return bs_cli_print_json(
            json_pack("{s:i,s:I,s:b}", "files", n, "bytes", (json_int_t)freed, "dry_run", dry));
    bs_format_bytes(freed, bytes, sizeof bytes);
    return bs_cli_print("%d files, %s, %s\n", n, bytes, dry ? "would be removed" : "removed");
}

bs_status bs_cli_snapshot(const bs_options *options, bs_comm *comm)
{
    static const struct {
        const char *name;
        bs_status (*run)(task *t);
        bool file;
    } verbs[] = {{"ls", list, false},
                 {"show", show, false},
                 {"verify", verify, false},
                 {"export", export, true},
                 {"gc", collect, false}};
    task t = {.options = options,
              .dir = bs_options_operand(options, 1),
              .number = bs_options_given(options, "number") ? bs_options_int(options, "number") : 0,
              .json = bs_options_flag(options, "json")};
    const char *verb = bs_options_operand(options, 0);
    (void)comm;
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        if (strcmp(verbs[i].name, verb) != 0) continue;
        if (bs_options_n_operands(options) != 2 + verbs[i].file)
            return bs_fail(BS_STATUS_USAGE, "snapshot %s: takes DIR%s", verb,
                           verbs[i].file ? " and FILE.h5" : "");
        if (verbs[i].file) t.file = bs_options_operand(options, 2);
        return verbs[i].run(&t);
    }
    return bs_fail(BS_STATUS_USAGE, "snapshot %s: must be ls, show, verify, export or gc", verb);
}
