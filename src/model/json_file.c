/* json_file.c: reading JSON with the checks that json_file.h promises. jansson limits depth (2048) and refuses
 * numbers beyond 64 bits; its words about bad syntax may quote the file, so what could break the line is replaced. */
#include "config.h"
#include "src/model/json_file.h"
#include "src/model/map.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

static bs_status bad_syntax(const char *path, const json_error_t *error)
{
    char text[sizeof error->text];
    snprintf(text, sizeof text, "%s", error->text);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~') *c = '?';
    return bs_fail(BS_STATUS_FORMAT, "%s: line %d, column %d: %s", path, error->line, error->column, text);
}

bs_status bs_json_parse(const char *path, const char *bytes, size_t n, json_t **out)
{
    json_error_t error;
    json_t *root = json_loadb(bytes, n, JSON_REJECT_DUPLICATES, &error);
    if (!root) return bad_syntax(path, &error);
    if (!json_is_object(root)) {
        bs_status status = bs_fail(BS_STATUS_FORMAT, "%s: the whole is %s: must be an object", path,
                                   bs_json_type_name(root));
        json_decref(root);
        return status;
    }
    *out = root;
    return BS_STATUS_OK;
}

bs_status bs_json_load(const char *path, size_t max_bytes, json_t **out, bool *found)
{
    bs_map map = {0};
    if (found) *found = access(path, F_OK) == 0 || errno != ENOENT;
    if (found && !*found) return BS_STATUS_OK;
    BS_TRY(bs_map_open(path, "an object is needed", &map));
    bs_status status = map.n > max_bytes ? bs_fail(BS_STATUS_FORMAT, "%s: %" PRIu64 " bytes: more than %zu",
                                                   path, map.n, max_bytes)
                                         : bs_json_parse(path, (const char *)map.bytes, (size_t)map.n, out);
    bs_map_close(&map);
    return status;
}

const char *bs_json_type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a real number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: break;
    }
    return "null";
}

bs_string bs_json_string(const json_t *value)
{
    return (bs_string){json_string_value(value), json_string_length(value)};
}

int bs_json_shown(bs_string text)
{
    int n = 0;
    while (n < 64 && (size_t)n < text.bytes && (unsigned char)text.text[n] >= ' ' && text.text[n] != 0x7f)
        n++;
    return n;
}

/* *value is NULL when the key is not there and need not be. */
static bs_status look_up(const bs_json *json, const char *key, bool *found, json_t **value)
{
    *value = json_object_get(json->object, key);
    if (json_is_null(*value)) *value = NULL;
    if (found) *found = *value != NULL;
    if (!*value && !found)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s%s is missing", json->path, json->where, key);
    return BS_STATUS_OK;
}

static bs_status wrong_type(const bs_json *json, const char *key, const json_t *value, const char *wanted)
{
    return bs_fail(BS_STATUS_FORMAT, "%s: %s%s is %s: must be %s", json->path, json->where, key,
                   bs_json_type_name(value), wanted);
}

bs_status bs_json_get_int(const bs_json *json, const char *key, int64_t min, int64_t max, int64_t *out,
                          bool *found)
{
    json_t *value;
    BS_TRY(look_up(json, key, found, &value));
    if (!value) return BS_STATUS_OK;
    if (!json_is_integer(value)) return wrong_type(json, key, value, "an integer");
    int64_t n = json_integer_value(value);
    if (n < min || n > max)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s%s is %" PRId64 ": must be %" PRId64 " … %" PRId64,
                       json->path, json->where, key, n, min, max);
    *out = n;
    return BS_STATUS_OK;
}

bs_status bs_json_get_float(const bs_json *json, const char *key, double min, double max, double *out,
                            bool *found)
{
    json_t *value;
    BS_TRY(look_up(json, key, found, &value));
    if (!value) return BS_STATUS_OK;
    if (!json_is_number(value)) return wrong_type(json, key, value, "a number");
    double x = json_number_value(value);
    if (!(x >= min && x <= max))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s%s is %g: must be %g … %g", json->path, json->where, key, x,
                       min, max);
    *out = x;
    return BS_STATUS_OK;
}

bs_status bs_json_get_bool(const bs_json *json, const char *key, bool *out, bool *found)
{
    json_t *value;
    BS_TRY(look_up(json, key, found, &value));
    if (!value) return BS_STATUS_OK;
    if (!json_is_boolean(value)) return wrong_type(json, key, value, "true or false");
    *out = json_is_true(value);
    return BS_STATUS_OK;
}

bs_status bs_json_get_string(const bs_json *json, const char *key, bs_string *out, bool *found)
{
    json_t *value;
    BS_TRY(look_up(json, key, found, &value));
    if (!value) return BS_STATUS_OK;
    if (!json_is_string(value)) return wrong_type(json, key, value, "a string");
    *out = bs_json_string(value);
    return BS_STATUS_OK;
}

/* A value that has others in it. */
static bs_status get_container(const bs_json *json, const char *key, json_type type, const char *wanted,
                               json_t **out, bool *found)
{
    json_t *value;
    BS_TRY(look_up(json, key, found, &value));
    if (!value) return BS_STATUS_OK;
    if (json_typeof(value) != type) return wrong_type(json, key, value, wanted);
    *out = value;
    return BS_STATUS_OK;
}

bs_status bs_json_get_array(const bs_json *json, const char *key, json_t **out, bool *found)
{
    return get_container(json, key, JSON_ARRAY, "an array", out, found);
}

bs_status bs_json_get_object(const bs_json *json, const char *key, json_t **out, bool *found)
{
    return get_container(json, key, JSON_OBJECT, "an object", out, found);
}
