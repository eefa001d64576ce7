/* packed_avx2.c: packed_tiles.h for AVX2 and FMA (Intel since Haswell, AMD since Zen): 16 sums are two registers. */
#include "packed_matmul.h"

#ifdef PANELS_X86
#include <immintrin.h>
#include <string.h>

#define ON __attribute__((target("avx2,fma,f16c")))
#define TILE_FN ON static inline __attribute__((always_inline))
#define OP ON static inline __attribute__((always_inline))
#define SET_TILE 4

typedef struct { __m256i a, b; } ints;
typedef struct { ints size, sign; } signed_codes;
typedef struct { __m256 a, b; } floats;

#define BOTH(call_a, call_b) (ints){call_a, call_b}
#define EACH(f, x, y) (ints){f((x).a, (y).a), f((x).b, (y).b)}
#define FEACH(f, x, y) (floats){f((x).a, (y).a), f((x).b, (y).b)}

OP ints i_load(const void *p) { return BOTH(_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)); }
OP ints i_set(int32_t x) { return BOTH(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
OP ints i_and(ints x, int mask) {
    __m256i m = _mm256_set1_epi8((char)mask);
    return BOTH(_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m));
}
OP ints i_or(ints x, ints y) { return EACH(_mm256_or_si256, x, y); }
/* shifts move bits into the neighbouring byte; the caller masks them off */
OP ints i_right(ints x, int bits) { return BOTH(_mm256_srli_epi16(x.a, bits), _mm256_srli_epi16(x.b, bits)); }
OP ints i_left(ints x, int bits) { return BOTH(_mm256_slli_epi16(x.a, bits), _mm256_slli_epi16(x.b, bits)); }
OP ints i_add(ints x, ints y) { return EACH(_mm256_add_epi32, x, y); }
OP ints i_mul(ints x, ints y) { return EACH(_mm256_mullo_epi32, x, y); }
OP ints i_unsigned_bytes(const void *p) {
    __m128i x = _mm_loadu_si128(p);
    return BOTH(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
OP ints i_signed_bytes(const void *p) {
    __m128i x = _mm_loadu_si128(p);
    return BOTH(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
OP ints i_unsigned_pairs(const void *p) {
    const __m128i *x = p;
    return BOTH(_mm256_cvtepu8_epi16(_mm_loadu_si128(x)), _mm256_cvtepu8_epi16(_mm_loadu_si128(x + 1)));
}
/* x is at most 63, or 128 where its sign is applied to y, and |y| at most 127: the sum of two products fits 16 bits */
OP __m256i dot4(__m256i sum, __m256i x, __m256i y) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
}
OP ints i_dot(ints sum, ints x, int32_t word) {
    __m256i y = _mm256_set1_epi32(word);
    return BOTH(dot4(sum.a, x.a, y), dot4(sum.b, x.b, y));
}
OP ints i_dot_pairs(ints sum, ints x, int32_t pair) {
    __m256i y = _mm256_set1_epi32(pair);
    return BOTH(_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.a, y)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.b, y)));
}
OP signed_codes i_signed(ints x) {
    __m256i top = _mm256_set1_epi8((char)0x80);
    ints sign = BOTH(_mm256_xor_si256(x.a, top), _mm256_xor_si256(x.b, top));
    return (signed_codes){BOTH(_mm256_abs_epi8(sign.a), _mm256_abs_epi8(sign.b)), sign};
}
OP ints i_dot_signed(ints sum, signed_codes x, int32_t word) {
    __m256i y = _mm256_set1_epi32(word);
    return BOTH(dot4(sum.a, x.size.a, _mm256_sign_epi8(y, x.sign.a)),
                dot4(sum.b, x.size.b, _mm256_sign_epi8(y, x.sign.b)));
}
OP floats f_zero(void) { return (floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
OP floats f_set(float x) { return (floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OP floats f_half(const uint16_t *p) {
    return (floats){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                    _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8)))};
}
OP floats f_of(ints x) { return (floats){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
OP floats f_add(floats x, floats y) { return FEACH(_mm256_add_ps, x, y); }
OP floats f_sub(floats x, floats y) { return FEACH(_mm256_sub_ps, x, y); }
OP floats f_mul(floats x, floats y) { return FEACH(_mm256_mul_ps, x, y); }
OP floats f_fused(floats x, floats y, floats sum) {
    return (floats){_mm256_fmadd_ps(x.a, y.a, sum.a), _mm256_fmadd_ps(x.b, y.b, sum.b)};
}
OP floats f_load(const float *p) { return (floats){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OP void f_store(float *p, floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
/* out [m], m up to 16: each the sum of 16 numbers, halves added to halves */
OP void f_sums(float *out, float sums[PANEL][PANEL], size_t m) {
    for (size_t i = 0; i < m; i++) {
        floats x = f_load(sums[i]);
        __m256 eight = _mm256_add_ps(x.a, x.b);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        out[i] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
}

#include "packed_tiles.h"

bool rs_packed_avx2(panel_set *set) {
    *set = (panel_set){SET_TILE, 0, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, halves, rows};
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#else
typedef int packed_avx2_is_for_x86; /* ISO C forbids an empty file */
#endif
