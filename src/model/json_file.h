/* json_file.h: a JSON file of a model's directory, and its fields, checked as they are read.
 *
 * A key that is null counts as missing, as it does for the programs that write these files. With `found` NULL a
 * missing key is an error. Every error is one line with the file, the key (under `where`, if that is not "") and the
 * value.
 */
#ifndef BS_JSON_FILE_H
#define BS_JSON_FILE_H

#include "src/base/status.h"
#include "src/model/tensor.h"

#include <jansson.h>

/* An object and where it stands, for error lines. */
typedef struct bs_json {
    const char *path;  /* the file */
    const char *where; /* "" for the whole file, else "rope_scaling." */
    json_t *object;
} bs_json;

/* Parses n bytes whose root must be an object; duplicate keys are refused. *out is the caller's to json_decref. */
bs_status bs_json_parse(const char *path, const char *bytes, size_t n, json_t **out);
/* The same of a file of at most max_bytes. With found not NULL a file that does not exist is no error. */
bs_status bs_json_load(const char *path, size_t max_bytes, json_t **out, bool *found);

bs_status bs_json_get_int(const bs_json *json, const char *key, int64_t min, int64_t max, int64_t *out,
                          bool *found);
/* An integer or a real number. */
bs_status bs_json_get_float(const bs_json *json, const char *key, double min, double max, double *out,
                            bool *found);
bs_status bs_json_get_bool(const bs_json *json, const char *key, bool *out, bool *found);
bs_status bs_json_get_string(const bs_json *json, const char *key, bs_string *out, bool *found);
/* Borrowed. */
bs_status bs_json_get_array(const bs_json *json, const char *key, json_t **out, bool *found);
bs_status bs_json_get_object(const bs_json *json, const char *key, json_t **out, bool *found);

/* What a value is, for error lines: "a string" and so on. */
const char *bs_json_type_name(const json_t *value);
/* A string's text; text NULL: it is none. */
bs_string bs_json_string(const json_t *value);
/* For "%.*s" of text from a file: at most 64 bytes, and none that end the line. */
int bs_json_shown(bs_string text);

#endif
