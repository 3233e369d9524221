/* attend_avx2.c: attention over a page in vectors of 8. A 2-bit field becomes a float by a shift and an
 * 8-entry table (vpermps looks at the index's low three bits only); 4 and 8 bits by two shifts that extend
 * the sign, and a conversion. The kernels: attend_simd.h. */
#if defined(__x86_64__)
#include "kernels/cpu/attend_tile.h"
#include "kernels/cpu/vec_avx2.h"

#define LANES       8
#define ATTEND_PAGE bs_cpu_attend_page_avx2
#define CODE_NV(R)  ((R) <= 2 ? 4 : (R) <= 4 ? 2 : 1)
#define PANEL       2
#define HALF_ROWS   3

typedef __m256i vi;

VEC vf v_load_i16(const int16_t *x)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)x)));
}

/* x in the lanes whose token t + lane lies in lo … hi − 1, else `other`. */
VEC vf v_keep_range(vf x, int t, int lo, int hi, vf other)
{
    __m256i token = _mm256_add_epi32(_mm256_set1_epi32(t), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i keep = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), token),
                                       _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), token));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(keep));
}

VEC float v_hsum(vf x)
{
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

VEC float v_hmax(vf x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

VEC float code_mid(int bits)
{
    return bits == 2 ? 1.5f : bits == 4 ? 8.0f : 128.0f;
}

VEC vi v_load_words(const uint32_t *words, int bits)
{
    vi w = _mm256_loadu_si256((const __m256i *)words); /* c − 8 or c − 128 as signed fields */
    return bits == 2 ? w : _mm256_xor_si256(w, _mm256_set1_epi32((int)(bits == 4 ? 0x88888888 : 0x80808080)));
}

/* Field j of each word less code_mid. */
VEC vf v_unpack(vi w, int bits, int j)
{
    const vf two = _mm256_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f);
    if (bits == 2) return _mm256_permutevar8x32_ps(two, j == 0 ? w : (vi)((__v8su)w >> (2 * j)));
    vi top = bits * (j + 1) == 32 ? w : (vi)((__v8su)w << (32 - bits * (j + 1)));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 32 - bits));
}

/* Sums of four vectors to out[0 … 3]. */
VEC void v_store_sums(float *out, vf a, vf b, vf c, vf d)
{
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

/* 8 × 8: dst[j][i] = src[i][j]. */
VEC void v_transpose_f16(const bs_f16 *src, int src_ld, float *dst, int dst_ld)
{
    vf a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = v_load_f16(src + i * src_ld);
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) { /* 4 × 4 in each half: b[i + j] has columns j and j + 4 */
        vf lo01 = _mm256_unpacklo_ps(a[i], a[i + 1]), hi01 = _mm256_unpackhi_ps(a[i], a[i + 1]);
        vf lo23 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), hi23 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
        b[i] = _mm256_shuffle_ps(lo01, lo23, 0x44);
        b[i + 1] = _mm256_shuffle_ps(lo01, lo23, 0xee);
        b[i + 2] = _mm256_shuffle_ps(hi01, hi23, 0x44);
        b[i + 3] = _mm256_shuffle_ps(hi01, hi23, 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* then the halves */
        v_store(dst + j * dst_ld, _mm256_permute2f128_ps(b[j], b[j + 4], 0x20));
        v_store(dst + (j + 4) * dst_ld, _mm256_permute2f128_ps(b[j], b[j + 4], 0x31));
    }
}

#include "kernels/cpu/attend_simd.h"
#endif
