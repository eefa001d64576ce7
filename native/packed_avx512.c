/* packed_avx512.c: packed_tiles.h for AVX-512 with VNNI (Intel since Ice Lake, AMD since Zen 4), which multiplies four
 * bytes and adds them up in one instruction. */
#include "packed_matmul.h"

#ifdef PANELS_X86
#include <immintrin.h>
#include <string.h>

#define ON __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))
#define TILE_FN ON static inline __attribute__((always_inline))
#define OP ON static inline __attribute__((always_inline))
#define SET_TILE 8

typedef __m512i ints;
typedef __m512i signed_codes; /* still unsigned: input_32.offset makes up for it */
typedef __m512 floats;

OP ints i_load(const void *p) { return _mm512_loadu_si512(p); }
OP ints i_set(int32_t x) { return _mm512_set1_epi32(x); }
OP ints i_and(ints x, int mask) { return _mm512_and_si512(x, _mm512_set1_epi8((char)mask)); }
OP ints i_or(ints x, ints y) { return _mm512_or_si512(x, y); }
/* shifts move bits into the neighbouring byte; the caller masks them off */
OP ints i_right(ints x, int bits) { return _mm512_srli_epi16(x, (unsigned)bits); }
OP ints i_left(ints x, int bits) { return _mm512_slli_epi16(x, (unsigned)bits); }
OP ints i_add(ints x, ints y) { return _mm512_add_epi32(x, y); }
OP ints i_mul(ints x, ints y) { return _mm512_mullo_epi32(x, y); }
OP ints i_unsigned_bytes(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(p)); }
OP ints i_signed_bytes(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
OP ints i_unsigned_pairs(const void *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(p)); }
OP ints i_dot(ints sum, ints x, int32_t word) { return _mm512_dpbusd_epi32(sum, x, _mm512_set1_epi32(word)); }
OP ints i_dot_pairs(ints sum, ints x, int32_t pair) { return _mm512_dpwssd_epi32(sum, x, _mm512_set1_epi32(pair)); }
OP signed_codes i_signed(ints x) { return x; }
OP ints i_dot_signed(ints sum, signed_codes x, int32_t word) { return i_dot(sum, x, word); }
OP floats f_zero(void) { return _mm512_setzero_ps(); }
OP floats f_set(float x) { return _mm512_set1_ps(x); }
OP floats f_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
OP floats f_of(ints x) { return _mm512_cvtepi32_ps(x); }
OP floats f_add(floats x, floats y) { return _mm512_add_ps(x, y); }
OP floats f_sub(floats x, floats y) { return _mm512_sub_ps(x, y); }
OP floats f_mul(floats x, floats y) { return _mm512_mul_ps(x, y); }
OP floats f_fused(floats x, floats y, floats sum) { return _mm512_fmadd_ps(x, y, sum); }
OP floats f_load(const float *p) { return _mm512_loadu_ps(p); }
OP void f_store(float *p, floats x) { _mm512_storeu_ps(p, x); }
/* out [m], m up to 16: each the sum of 16 numbers, halves added to halves. Rows g, 4 + g, 8 + g, 12 + g go together, so
 * that their sums end up in order. */
OP void f_sums(float *out, float sums[PANEL][PANEL], size_t m) {
    floats groups[4];
    for (int g = 0; g < 4; g++) {
        floats a = f_load(sums[g]), b = f_load(sums[4 + g]), c = f_load(sums[8 + g]), d = f_load(sums[12 + g]);
        floats ab = f_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        floats cd = f_add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        groups[g] = f_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    floats x = f_add(_mm512_shuffle_ps(groups[0], groups[1], 0x44), _mm512_shuffle_ps(groups[0], groups[1], 0xee));
    floats y = f_add(_mm512_shuffle_ps(groups[2], groups[3], 0x44), _mm512_shuffle_ps(groups[2], groups[3], 0xee));
    floats all = f_add(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd));
    _mm512_mask_storeu_ps(out, (__mmask16)((1u << m) - 1), all);
}

#include "packed_tiles.h"

bool rs_packed_avx512(panel_set *set) {
    *set = (panel_set){SET_TILE, -128, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, halves, rows};
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}
#else
typedef int packed_avx512_is_for_x86; /* ISO C forbids an empty file */
#endif
