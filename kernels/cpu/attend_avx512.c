/* attend_avx512.c: attention over a page in vectors of 16. A 4- or 2-bit field becomes a float by a shift and
 * a 16-entry table in one register (vpermps looks at the index's low four bits only). The kernels:
 * attend_simd.h. */
#if defined(__x86_64__)
#include "kernels/cpu/attend_tile.h"
#include "kernels/cpu/vec_avx512.h"

#define LANES       16
#define ATTEND_PAGE bs_cpu_attend_page_avx512
#define CODE_NV(R)  ((R) <= 4 ? 4 : 2)
#define PANEL       4
#define HALF_ROWS   4

typedef __m512i vi;

VEC vf v_load_i16(const int16_t *x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)x)));
}

/* x in the lanes whose token t + lane lies in lo … hi − 1, else `other`. */
VEC vf v_keep_range(vf x, int t, int lo, int hi, vf other)
{
    __m512i token = _mm512_add_epi32(_mm512_set1_epi32(t),
                                     _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __mmask16 keep = _mm512_cmpge_epi32_mask(token, _mm512_set1_epi32(lo)) &
                     _mm512_cmplt_epi32_mask(token, _mm512_set1_epi32(hi));
    return _mm512_mask_blend_ps(keep, other, x);
}

VEC float v_hsum(vf x)
{
    return _mm512_reduce_add_ps(x);
}

VEC float v_hmax(vf x)
{
    return _mm512_reduce_max_ps(x);
}

VEC float code_mid(int bits)
{
    return bits == 2 ? 1.5f : bits == 4 ? 7.5f : 128.0f;
}

VEC vi v_load_words(const uint32_t *words, int bits)
{
    vi w = _mm512_loadu_si512(words);
    return bits == 8 ? _mm512_xor_si512(w, _mm512_set1_epi32((int)0x80808080))
                     : w; /* c − 128 as a signed byte */
}

/* Field j of each word less code_mid. */
VEC vf v_unpack(vi w, int bits, int j)
{
    const vf four = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f,
                                   3.5f, 4.5f, 5.5f, 6.5f, 7.5f);
    const vf two = _mm512_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f,
                                  1.5f, -1.5f, -0.5f, 0.5f, 1.5f);
    if (bits == 8) {
        vi top = j == 3 ? w : (vi)((__v16su)w << (24 - 8 * j));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
    }
    return _mm512_permutexvar_ps(j == 0 ? w : (vi)((__v16su)w >> (bits * j)), bits == 4 ? four : two);
}

/* Sums of four vectors to out[0 … 3]. */
VEC void v_store_sums(float *out, vf a, vf b, vf c, vf d)
{
#define HALVES(x) _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1))
    __m256 ab = _mm256_hadd_ps(HALVES(a), HALVES(b)), cd = _mm256_hadd_ps(HALVES(c), HALVES(d));
#undef HALVES
    __m256 sums = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

/* 16 × 16: dst[j][i] = src[i][j]. */
VEC void v_transpose_f16(const bs_f16 *src, int src_ld, float *dst, int dst_ld)
{
    vf a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = v_load_f16(src + i * src_ld);
#pragma GCC unroll 4
    for (int i = 0; i < 16;
         i += 4) { /* 4 × 4 in each quarter: b[i + j] has columns j, j + 4, j + 8, j + 12 */
        vf lo01 = _mm512_unpacklo_ps(a[i], a[i + 1]), hi01 = _mm512_unpackhi_ps(a[i], a[i + 1]);
        vf lo23 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), hi23 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
        b[i] = _mm512_shuffle_ps(lo01, lo23, 0x44);
        b[i + 1] = _mm512_shuffle_ps(lo01, lo23, 0xee);
        b[i + 2] = _mm512_shuffle_ps(hi01, hi23, 0x44);
        b[i + 3] = _mm512_shuffle_ps(hi01, hi23, 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* then the quarters */
        vf even01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88),
           odd01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
        vf even23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
        vf odd23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
        v_store(dst + j * dst_ld, _mm512_shuffle_f32x4(even01, even23, 0x88));
        v_store(dst + (j + 4) * dst_ld, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
        v_store(dst + (j + 8) * dst_ld, _mm512_shuffle_f32x4(even01, even23, 0xdd));
        v_store(dst + (j + 12) * dst_ld, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
    }
}

#include "kernels/cpu/attend_simd.h"
#endif
