/* shape.c: geometry: which pages lie in which part of which file, and where. Pure arithmetic, the same on every rank.
 *
 * All parts of pages have one rule. A part is [group][KV head][layer][page of the group][bytes]; a group is a block of 8
 * pages in a segment's quantized parts (tokens of a page follow each other, so [token of the block] and [page][token] are
 * the same bytes) and one page elsewhere. So a head shard's part of a group is one run, and a segment of an f16 format
 * differs only in having no parameters.
 */
#include "src/base/checked.h"
#include "src/snapshot/snapshot_private.h"

const char *const bs_snap_part_name[BS_SNAP_N_PARTS] = {
#define X(name, text) [BS_SNAP_##name] = text,
    BS_SNAP_PART_LIST(X)
#undef X
};

bs_snap_shape bs_snap_shape_of(int n_layers, int n_kv_heads, int head_dim, const bs_kv_format *format)
{
    const bs_kv_page_bytes page = bs_kv_canonical_bytes(format, head_dim);
    bs_snap_shape shape = {.n_layers = n_layers,
                           .n_kv_heads = n_kv_heads,
                           .head_dim = head_dim,
                           .format = *format,
                           .is_f16 = format->k_bits == 16,
                           .f16_page = page.f16};
    if (shape.is_f16) {
        shape.page[BS_SNAP_K] = shape.page[BS_SNAP_V] = page.f16 / 2;
    } else {
        shape.n_sink = format->n_sink;
        shape.page[BS_SNAP_K] = page.k;
        shape.page[BS_SNAP_K_META] = page.k_meta;
        shape.page[BS_SNAP_V] = page.v;
        shape.page[BS_SNAP_V_META] = page.v_meta;
    }
    return shape;
}

/* ---- pages of a state -------------------------------------------------------------------------------------- */

int64_t bs_snap_sealed_pages(const bs_snap_shape *shape, const bs_cache_seq_state *state)
{
    const int64_t complete = state->length / BS_PAGE_TOKENS;
    if (shape->is_f16) return complete;
    return state->quant_end > shape->n_sink ? state->quant_end : bs_min_i64(shape->n_sink, complete);
}

int64_t bs_snap_segments_end(const bs_snap_shape *shape, const bs_cache_seq_state *state)
{
    const int64_t sealed = bs_snap_sealed_pages(shape, state);
    return sealed - sealed % BS_SNAP_BLOCK_PAGES;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

uint64_t bs_snap_page_bytes(const bs_snap_shape *shape, bs_snap_part part)
{
    if (part <= BS_SNAP_V_META) return shape->page[part];
    return part == BS_SNAP_F16 ? shape->f16_page : sizeof(uint32_t);
}

static bool is_f16_part(bs_snap_part part)
{
    return part == BS_SNAP_F16 || part == BS_SNAP_F16_CRC;
}

/* Bytes of each part from the numbers of pages and tokens. */
static void fill_bytes(const bs_snap_shape *shape, bs_snap_file *file)
{
    const uint64_t n_units = (uint64_t)shape->n_kv_heads * (uint64_t)shape->n_layers;
    for (bs_snap_part part = 0; part < BS_SNAP_TOKENS; part++) {
        const int64_t n = is_f16_part(part) ? file->n_f16_sink + file->n_f16 : file->n_quant;
        file->part[part].bytes = (uint64_t)n * n_units * bs_snap_page_bytes(shape, part);
    }
    file->part[BS_SNAP_TOKENS].bytes = (uint64_t)file->n_tokens * sizeof(uint32_t);
}

void bs_snap_segment_of(const bs_snap_shape *shape, int64_t first_page, int64_t end_page, bs_snap_file *out)
{
    *out = (bs_snap_file){.first_page = first_page,
                          .end_page = end_page,
                          .first_quant = first_page,
                          .n_quant = end_page - first_page,
                          .n_f16_sink = bs_max_i64(0, bs_min_i64(shape->n_sink, end_page) - first_page),
                          .first_f16 = end_page,
                          .first_token = first_page * BS_PAGE_TOKENS,
                          .n_tokens = (end_page - first_page) * BS_PAGE_TOKENS};
    fill_bytes(shape, out);
}

void bs_snap_tail_of(const bs_snap_shape *shape, int64_t first_page, const bs_cache_seq_state *state,
                     int64_t n_tokens, bs_snap_file *out)
{
    const int64_t end = (state->length + BS_PAGE_TOKENS - 1) / BS_PAGE_TOKENS;
    const int64_t sink_end = bs_max_i64(first_page, bs_min_i64(shape->n_sink, end));
    const int64_t quant_end = shape->is_f16 ? first_page
                                            : bs_max_i64(sink_end, bs_min_i64(state->quant_end, end));
    *out = (bs_snap_file){.is_tail = true,
                          .first_page = first_page,
                          .end_page = end,
                          .first_quant = sink_end,
                          .n_quant = quant_end - sink_end,
                          .n_f16_sink = sink_end - first_page,
                          .first_f16 = quant_end,
                          .n_f16 = end - quant_end,
                          .first_token = first_page * BS_PAGE_TOKENS,
                          .n_tokens = n_tokens - first_page * BS_PAGE_TOKENS};
    fill_bytes(shape, out);
}

bool bs_snap_find_page(const bs_snap_file *file, int64_t page, int64_t *index)
{
    if (page < file->first_page + file->n_f16_sink) {
        *index = page - file->first_page;
        return true;
    }
    if (page >= file->first_f16) {
        *index = file->n_f16_sink + page - file->first_f16;
        return true;
    }
    *index = page - file->first_quant;
    return false;
}

/* ---- inside a file ----------------------------------------------------------------------------------------- */

int bs_snap_part_dims(const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_part part,
                      uint64_t dims[6])
{
    const uint64_t group = (uint64_t)bs_snap_group_pages(file, is_f16_part(part));
    const uint64_t n_pages = (uint64_t)(is_f16_part(part) ? file->n_f16_sink + file->n_f16 : file->n_quant);
    if (part == BS_SNAP_TOKENS) {
        dims[0] = (uint64_t)file->n_tokens;
        return 1;
    }
    dims[0] = n_pages / group;
    dims[1] = (uint64_t)shape->n_kv_heads;
    dims[2] = (uint64_t)shape->n_layers;
    if (part == BS_SNAP_F16) {
        dims[3] = 2;
        dims[4] = BS_PAGE_TOKENS;
        dims[5] = (uint64_t)shape->head_dim;
        return 6;
    }
    if (part == BS_SNAP_F16_CRC) return 3;
    dims[3] = group;
    if (part == BS_SNAP_CRC) return 4;
    dims[4] = shape->page[part];
    if (part == BS_SNAP_K || part == BS_SNAP_V) {
        dims[3] = group * BS_PAGE_TOKENS;
        dims[4] /= BS_PAGE_TOKENS;
        if (shape->is_f16) dims[4] /= sizeof(bs_f16);
    }
    return 5;
}

uint64_t bs_snap_page_at(const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_part part,
                         int64_t index, int head, int layer)
{
    const int64_t group = bs_snap_group_pages(file, is_f16_part(part));
    const int64_t unit = ((index / group) * shape->n_kv_heads + head) * shape->n_layers + layer;
    return (uint64_t)(unit * group + index % group) * bs_snap_page_bytes(shape, part);
}

/* ---- the files of a commit --------------------------------------------------------------------------------- */

static int64_t segment_pages(const bs_snap_file *segment)
{
    return segment->end_page - segment->first_page;
}

void bs_snap_plan_files(const bs_snap_shape *shape, const bs_snap_file *old, int n_old,
                        const bs_cache_seq_state *state, int64_t n_tokens, int64_t segment_tokens,
                        int *n_kept, bs_snap_file *files, int *n_new)
{
    const int64_t end = bs_snap_segments_end(shape, state), whole = segment_tokens / BS_PAGE_TOKENS;
    int64_t first = n_old > 0 ? old[n_old - 1].end_page : 0;
    int kept = n_old, n_whole = 0, n = 0;
    for (int i = 0; i < n_old; i++) n_whole += segment_pages(&old[i]) >= whole;
    /* Too many: the small last ones are rewritten, with the new, as whole ones. Those stay as they are for good, and between
     * two rewritings there are 32 others at least, so a token is written twice or so, however small the steps. */
    const int64_t limit = bs_max_i64(BS_SNAP_MAX_SEGMENTS, n_whole + BS_SNAP_MAX_SEGMENTS / 2);
    if (n_old + bs_ceil_div(end - first, whole) > limit)
        while (kept > 0 && segment_pages(&old[kept - 1]) < whole) first = old[--kept].first_page;
    /* One commit makes few files, whatever it holds. */
    const int64_t blocks = bs_ceil_div((end - first) / BS_SNAP_BLOCK_PAGES, BS_SNAP_MAX_SEGMENTS / 2);
    const int64_t most = bs_max_i64(whole, blocks * BS_SNAP_BLOCK_PAGES);
    while (first < end) {
        const int64_t to = bs_min_i64(end, first + most);
        bs_snap_segment_of(shape, first, to, &files[n++]);
        first = to;
    }
    bs_snap_tail_of(shape, end, state, n_tokens, &files[n++]);
    *n_kept = kept;
    *n_new = n;
}
