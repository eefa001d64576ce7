/* ops.c: the kernels of refspec/reference/ops.py in portable C11, same names, same order.
 *
 * Written so that a compiler vectorizes them without -ffast-math: a reduction keeps LANES independent partial sums, so
 * the order of summation is fixed by the source and not by the instruction set, and exp is branch-free arithmetic.
 * Nothing is fused: a fused multiply-add would round differently from one machine to the next.
 */
#include "refspec.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 2
#error "floats are evaluated with excess precision: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

enum { LANES = 16 }; /* four SSE registers or two AVX ones: enough to hide the latency of an addition */

#ifndef __has_feature
#define __has_feature(name) 0
#endif

const char *rs_build(void) {
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
    return "sanitized";
#else
    return "plain";
#endif
}

/* The sum of the lanes, pairwise: with the lanes themselves, the only order of summation. */
RS_INLINE float fold(float *lane) {
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t j = 0; j < width; j++) lane[j] += lane[j + width];
    return lane[0];
}

RS_INLINE float dot(const float *a, const float *b, size_t n) {
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += a[i + j] * b[i + j];
    for (size_t j = 0; i + j < n; j++) lane[j] += a[i + j] * b[i + j];
    return fold(lane);
}

RS_INLINE float sum(const float *x, size_t n) {
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += x[i + j];
    for (size_t j = 0; i + j < n; j++) lane[j] += x[i + j];
    return fold(lane);
}

RS_INLINE float max_of(const float *x, size_t n) {
    float lane[LANES];
    for (size_t j = 0; j < LANES; j++) lane[j] = x[0];
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (size_t j = 0; i + j < n; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (size_t j = 1; j < LANES; j++) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    return lane[0];
}

RS_INLINE float from_bits(uint32_t bits) {
    union { uint32_t bits; float value; } pun = {.bits = bits};
    return pun.value;
}

RS_INLINE uint32_t to_bits(float value) {
    union { float value; uint32_t bits; } pun = {.value = value};
    return pun.bits;
}

/* exp within 1 ulp: x = n ln2 + r, |r| <= ln2/2, e^r by its Taylor series to degree 7 (truncation 5e-9, below half an
 * ulp), 2^n applied in two halves so that overflow to infinity and gradual underflow come out as IEEE has them. Not
 * libm's expf: that one is neither vectorizable nor the same on every platform. No branch, and a NaN falls through. */
RS_INLINE float exp_one(float x) {
    /* 1.5 * 2^23: a float this large has no fraction bits, so adding it rounds to an integer */
    const float shift = 12582912.0f;
    float c = x < -105.0f ? -105.0f : x; /* exp(-105) rounds to 0 */
    c = c > 90.0f ? 90.0f : c;           /* exp(90) overflows to infinity */
    float shifted = c * 1.44269504f + shift, n = shifted - shift;
    float r = c - n * 0.693359375f; /* ln2 in two parts; this product is exact */
    r = r - n * -2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t biased = to_bits(shifted) - to_bits(shift) + 254u; /* n + 254: the low bits of `shifted` are n itself */
    uint32_t half = biased >> 1;                                /* 2^n = 2^(half-127) * 2^(biased-half-127) */
    return p * from_bits(half << 23) * from_bits((biased - half) << 23);
}

RS_FAST void rs_rms_norm(float *out, const float *x, const float *weight, float eps, size_t rows, size_t width) {
    for (size_t t = 0; t < rows; t++) {
        const float *row = x + t * width;
        float root = sqrtf(dot(row, row, width) / (float)width + eps);
        for (size_t i = 0; i < width; i++) out[t * width + i] = weight[i] * (row[i] / root);
    }
}

void rs_rope(float *out, const float *x, const int64_t *positions, const float *freqs, double theta, int32_t style,
             size_t rows, size_t heads, size_t head_dim) {
    size_t half = head_dim / 2;
    size_t step = style == RS_INTERLEAVED ? 2 : 1;      /* first elements of consecutive pairs lie this far apart */
    size_t partner = style == RS_INTERLEAVED ? 1 : half; /* and the second element of a pair this far from the first */
    for (size_t i = 0; i < half; i++) {
        double frequency = pow(theta, -(double)i / (double)half);
        if (freqs) frequency /= (double)freqs[i];
        for (size_t t = 0; t < rows; t++) {
            double angle = (double)positions[t] * frequency; /* double: float32 would lose far positions */
            float c = (float)cos(angle), s = (float)sin(angle);
            for (size_t h = 0; h < heads; h++) {
                size_t first = (t * heads + h) * head_dim + i * step, second = first + partner;
                float a = x[first], b = x[second];
                out[first] = a * c - b * s;
                out[second] = a * s + b * c;
            }
        }
    }
}

RS_FAST void rs_matvec(float *out, const float *w, const float *x, size_t rows, size_t n_out, size_t n_in) {
    for (size_t o = 0; o < n_out; o++) /* outputs outside: a weight row is read from memory once for all T rows */
        for (size_t t = 0; t < rows; t++) out[t * n_out + o] = dot(w + o * n_in, x + t * n_in, n_in);
}

RS_FAST void rs_softmax(float *out, const float *x, size_t rows, size_t width) {
    for (size_t t = 0; t < rows && width > 0; t++) {
        const float *row = x + t * width;
        float *e = out + t * width;
        float top = max_of(row, width); /* subtracted so that exp cannot overflow */
        for (size_t i = 0; i < width; i++) e[i] = exp_one(row[i] - top);
        float total = sum(e, width);
        for (size_t i = 0; i < width; i++) e[i] /= total;
    }
}

RS_FAST void rs_swiglu(float *out, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
}

/* o [hd] = sum over s of p[s] value[s], in the order of s; LANES channels at a time, whose sums stay in registers. */
RS_INLINE void mix(float *o, const float *p, const float *value, size_t seen, size_t stride, size_t head_dim) {
    size_t i = 0;
    for (; i + LANES <= head_dim; i += LANES) {
        float lane[LANES] = {0};
        for (size_t s = 0; s < seen; s++)
            for (size_t j = 0; j < LANES; j++) lane[j] += p[s] * value[s * stride + i + j];
        for (size_t j = 0; j < LANES; j++) o[i + j] = lane[j];
    }
    for (; i < head_dim; i++) {
        o[i] = 0.0f;
        for (size_t s = 0; s < seen; s++) o[i] += p[s] * value[s * stride + i];
    }
}

RS_FAST void rs_attention(float *out, float *weights, float *scratch, const float *q, const float *k, const float *v,
                  const int64_t *visible, size_t rows, size_t keys, size_t heads, size_t kv_heads, size_t head_dim) {
    size_t group = heads / kv_heads, stride = kv_heads * head_dim; /* stride: floats per cached row */
    float scale = sqrtf((float)head_dim);
    for (size_t t = 0; t < rows; t++) {
        size_t seen = (size_t)visible[t];
        for (size_t h = 0; h < heads; h++) {
            const float *query = q + (t * heads + h) * head_dim; /* [hd] */
            const float *key = k + h / group * head_dim, *value = v + h / group * head_dim;
            float *p = weights ? weights + (h * rows + t) * keys : scratch; /* [S] */
            float *o = out + (t * heads + h) * head_dim;                    /* [hd] */
            for (size_t s = 0; s < seen; s++) p[s] = dot(query, key + s * stride, head_dim) / scale;
            rs_softmax(p, p, 1, seen);
            mix(o, p, value, seen, stride, head_dim);
            if (weights)
                for (size_t s = seen; s < keys; s++) p[s] = 0.0f;
        }
    }
}

void rs_gather_rows(float *out, const float *table, const int64_t *ids, size_t rows, size_t width) {
    for (size_t t = 0; t < rows; t++) memcpy(out + t * width, table + (size_t)ids[t] * width, width * sizeof *out);
}

RS_FAST int64_t rs_argmax(const float *x, size_t n) {
    /* one pass, stride by stride: a loop that must be left at the first hit cannot be vectorized */
    enum { STRIDE = 512 };
    float top = -INFINITY;
    size_t best = 0;
    for (size_t at = 0; at < n; at += STRIDE) {
        size_t size = n - at < STRIDE ? n - at : STRIDE;
        uint32_t nans = 0;
        for (size_t i = 0; i < size; i++) nans += x[at + i] != x[at + i];
        if (nans)
            for (size_t i = at;; i++)
                if (x[i] != x[i]) return -1 - (int64_t)i;
        float here = max_of(x + at, size);
        if (here > top) {
            top = here;
            best = at;
        }
    }
    while (x[best] != top) best++;
    return (int64_t)best;
}

/* The sum over x [n] of exp((x - top) / temperature), in the order of rs_softmax's. */
RS_INLINE float exp_sum(const float *x, float top, float temperature, size_t n) {
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += exp_one((x[i + j] - top) / temperature);
    for (size_t j = 0; i + j < n; j++) lane[j] += exp_one((x[i + j] - top) / temperature);
    return fold(lane);
}

RS_FAST int64_t rs_argmax_prob(float *prob, const float *x, size_t n) {
    int64_t best = rs_argmax(x, n);
    if (best < 0) return best;
    if (!isfinite(x[best])) return -1 - best;
    *prob = 1.0f / exp_sum(x, x[best], 1.0f, n); /* softmax of the largest: exp(0) over the sum */
    return best;
}

RS_FAST int32_t rs_top_probs(int32_t *ids, float *probs, const float *x, float temperature, size_t k, size_t n) {
    int64_t best = rs_argmax(x, n);
    if (best < 0 || !isfinite(x[best])) return RS_NOT_FINITE;
    float top = x[best], total = exp_sum(x, top, temperature, n);
    size_t held = 0;
    for (size_t i = 0; i < n && k > 0; i++) { /* sorted insertion: k is small, and few x[i] pass the comparison */
        if (!(x[i] > -INFINITY) || (held == k && !(x[i] > x[ids[k - 1]]))) continue;
        size_t at = held < k ? held++ : k - 1;
        for (; at > 0 && x[ids[at - 1]] < x[i]; at--) ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
    for (size_t j = 0; j < held; j++) probs[j] = exp_one((x[ids[j]] - top) / temperature) / total;
    return (int32_t)held;
}

RS_FAST bool rs_all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad += !(x[i] - x[i] == 0.0f); /* inf - inf and NaN - NaN are NaN */
    return bad == 0;
}

void rs_gather_features(float *out, const float *const *src, const float *const *norm_weights, float eps, size_t rows,
                        size_t n_states, size_t width, size_t src_stride, size_t out_stride) {
    for (size_t s = 0; s < n_states; s++)
        for (size_t t = 0; t < rows; t++) {
            const float *from = src[s] + t * src_stride;
            float *to = out + t * out_stride + s * width;
            if (norm_weights)
                rs_rms_norm(to, from, norm_weights[s], eps, 1, width);
            else
                memmove(to, from, width * sizeof *to);
        }
}

RS_FAST void rs_quantize_q8_0(uint8_t *out, float *scale, const float *x, size_t blocks) {
    for (size_t b = 0; b < blocks; b++) {
        const float *from = x + 32 * b;
        float top = 0.0f;
        for (size_t i = 0; i < 32; i++) {
            float a = fabsf(from[i]);
            top = a > top ? a : top;
        }
        float d = top / 127.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
        int8_t q[32];
        for (size_t i = 0; i < 32; i++) {
            float v = from[i] * inverse, a = fabsf(v);
            a = a < 127.0f ? a : 127.0f; /* a scale so small that its inverse overflows must not leave the range */
            int32_t whole = (int32_t)a;
            whole += a - (float)whole >= 0.5f;
            q[i] = (int8_t)(v < 0.0f ? -whole : whole);
        }
        memcpy(out + 34 * b + 2, q, 32);
        scale[b] = d;
    }
}
