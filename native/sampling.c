/* sampling.c: refspec/reference/sampling.py and refspec/reference/verify.py, function by function, bit for bit.
 *
 * Same arithmetic in the same order as the Python, so every probability and therefore every decision is identical. That
 * holds as long as the compiler neither reassociates (no -ffast-math) nor fuses a * b + c (-ffp-contract=off, which
 * GCC's -std=c11 implies; refspec.h covers Clang and MSVC). Allocates nothing: the caller passes scratch.
 *
 * Legend: V vocabulary, k draft length.
 */
#include "refspec.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 2
#error "doubles are evaluated with excess precision: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

static const double Q_SUM_TOLERANCE = 1e-9; /* as in verify.py */

/* 1/i!, i = 0..13: the Taylor series of e^r. The divisions round once, as Python's do. */
static const double TAYLOR[14] = {
    1.0,           1.0,            1.0 / 2.0,       1.0 / 6.0,        1.0 / 24.0,
    1.0 / 120.0,   1.0 / 720.0,    1.0 / 5040.0,    1.0 / 40320.0,    1.0 / 362880.0,
    1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0,
};

/* e^x for x <= 0, 0 below -708: sampling.py, exp_nonpositive. No branch, so that the loops below vectorize. */
static inline double exp_nonpositive(double x) {
    const double log2_e = 1.4426950408889634;
    const double ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    const double z = x < -708.0 ? -708.0 : x;
    const int32_t n = (int32_t)(0.5 - z * log2_e); /* e^z = 2^-n e^r */
    const double r = (z + n * ln2_high) + n * ln2_low;
    double y = TAYLOR[13];
    for (int i = 12; i >= 0; i--) {
        y *= r;
        y += TAYLOR[i];
    }
    const uint64_t bits = (uint64_t)(uint32_t)(1023 - n) << 52; /* the bit pattern of 2^-n */
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -708.0 ? 0.0 : y * scale;
}

enum { BLOCK = 16 };

/* x [n], n <= BLOCK -> weights [n] = e^((x - top) / temperature). In place allowed. After top-k nearly every block is
 * all -inf and costs next to nothing; the others vectorize. */
static void weigh(double *weights, const double *x, double top, double temperature, size_t n) {
    int64_t alive = 0;
    for (size_t j = 0; j < n; j++) alive += x[j] > -INFINITY;
    if (alive)
        for (size_t j = 0; j < n; j++) weights[j] = exp_nonpositive((x[j] - top) / temperature);
    else
        for (size_t j = 0; j < n; j++) weights[j] = 0.0;
}

static size_t block_at(size_t i, size_t vocab) { return vocab - i < BLOCK ? vocab - i : BLOCK; }

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double rs_coin(uint64_t seed, uint64_t position, uint64_t stream) {
    const uint64_t golden = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t h = mix(seed + golden);
    h = mix(h + (position + 1) * golden);
    h = mix(h + (stream + 1) * golden);
    return (double)(h >> 11) * 0x1p-53;
}

/* x [V] = logits + bias, and its argmax, lowest index on ties, or a status: sampling.py, _biased. */
static int32_t biased(double *x, const float *logits, const rs_sampler *sampler, size_t vocab) {
    size_t best = 0;
    for (int32_t j = 0; j < sampler->n_bias; j++)
        if (sampler->bias_ids[j] < 0 || (size_t)sampler->bias_ids[j] >= vocab) return RS_BAD_TOKEN;
    for (size_t i = 0; i < vocab; i++) x[i] = logits[i];
    for (int32_t j = 0; j < sampler->n_bias; j++) x[sampler->bias_ids[j]] += sampler->bias_values[j];
    for (size_t i = 0; i < vocab; i++) {
        if (x[i] <= x[best]) continue;
        best = i;
        if (isnan(x[i])) break;
    }
    return isfinite(x[best]) ? (int32_t)best : RS_NOT_FINITE;
}

/* The order of top-k and top-p: by logit, then by lowest index. */
static bool precedes(const double *x, int32_t a, int32_t b) {
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

static void sift_down(int32_t *heap, const double *x, size_t root, size_t n) {
    const int32_t moved = heap[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && precedes(x, heap[child + 1], heap[child])) child++;
        if (precedes(x, moved, heap[child])) break;
        heap[root] = heap[child];
    }
    heap[root] = moved;
}

/* Moves the best of the tokens never popped behind them. */
static void pop(int32_t *order, const double *x, size_t popped, size_t vocab) {
    const size_t last = vocab - 1 - popped;
    const int32_t best = order[0];
    order[0] = order[last];
    order[last] = best;
    sift_down(order, x, 0, last);
}

/* Sets x [V] to -inf where top-k, top-p or min-p removes a token: sampling.py, _survivors.
 * A heap instead of a sort: only the tokens that survive are ever put in order. Popped tokens collect at the end of
 * order [V], best last, so order[V-1-i] is the i-th best and order[0..V-popped) is what was never popped. */
static void filter(double *x, int32_t *order, double top, const rs_sampler *sampler, size_t vocab) {
    const size_t limit = sampler->top_k > 0 && (size_t)sampler->top_k < vocab ? (size_t)sampler->top_k : vocab;
    if (limit < vocab || sampler->top_p < 1.0) {
        size_t popped = 0, kept = limit;
        for (size_t i = 0; i < vocab; i++) order[i] = (int32_t)i;
        for (size_t i = vocab / 2; i-- > 0;) sift_down(order, x, i, vocab);
        if (limit < vocab) {
            for (; popped < limit; popped++) pop(order, x, popped, vocab);
            for (size_t i = 0; i < vocab - popped; i++) x[order[i]] = -INFINITY;
        }
        if (sampler->top_p < 1.0) {
            double weights[BLOCK], total = 0.0, mass = 0.0;
            for (size_t i = 0; i < vocab; i += BLOCK) {
                weigh(weights, x + i, top, 1.0, block_at(i, vocab));
                for (size_t j = 0; j < block_at(i, vocab); j++) total += weights[j];
            }
            for (kept = 0; kept == 0 || (kept < limit && mass < sampler->top_p * total); kept++) {
                if (kept == popped) pop(order, x, popped++, vocab);
                mass += exp_nonpositive(x[order[vocab - 1 - kept]] - top);
            }
            for (size_t i = 0; i < vocab - kept; i++) x[order[i]] = -INFINITY;
        }
    }
    if (sampler->min_p > 0.0)
        for (size_t i = 0; i < vocab; i++)
            if (x[i] > -INFINITY && exp_nonpositive(x[i] - top) < sampler->min_p) x[i] = -INFINITY;
}

int32_t rs_p_target(double *p, int32_t *order, const float *logits, const rs_sampler *sampler, size_t vocab) {
    double total = 0.0;
    const int32_t best = biased(p, logits, sampler, vocab);
    if (best < 0) return best;
    const double top = p[best];
    if (sampler->temperature == 0.0) {
        for (size_t i = 0; i < vocab; i++) p[i] = 0.0;
        p[best] = 1.0;
        return RS_OK;
    }
    filter(p, order, top, sampler, vocab);
    for (size_t i = 0; i < vocab; i += BLOCK) weigh(p + i, p + i, top, sampler->temperature, block_at(i, vocab));
    for (size_t i = 0; i < vocab; i++) total += p[i];
    for (size_t i = 0; i < vocab; i++) p[i] /= total;
    return RS_OK;
}

int32_t rs_invert_cdf(const double *p, double coin, size_t vocab) {
    double total = 0.0, cumulative = 0.0;
    if (!(coin >= 0.0 && coin < 1.0)) return RS_BAD_COIN;
    for (size_t i = 0; i < vocab; i++) total += p[i];
    if (!(total > 0.0 && total < INFINITY)) return RS_BAD_DISTRIBUTION;
    const double threshold = coin * total;
    for (size_t i = 0; i < vocab; i++) {
        cumulative += p[i];
        if (cumulative > threshold) return (int32_t)i;
    }
    return RS_BAD_DISTRIBUTION; /* only if p has negative entries: coin * total < total = cumulative */
}

int32_t rs_sample(const float *logits, const rs_sampler *sampler, double coin, double *p, int32_t *order,
                  size_t vocab) {
    if (sampler->temperature == 0.0) {
        if (sampler->n_bias > 0) return biased(p, logits, sampler, vocab);
        const int64_t best = rs_argmax(logits, vocab); /* in float: the whole cost of greedy verification */
        return best >= 0 && isfinite(logits[best]) ? (int32_t)best : RS_NOT_FINITE;
    }
    const int32_t status = rs_p_target(p, order, logits, sampler, vocab);
    return status < 0 ? status : rs_invert_cdf(p, coin, vocab);
}

void rs_residual(double *rest, const double *p, const double *q, size_t vocab) {
    double total = 0.0;
    for (size_t i = 0; i < vocab; i++) total += p[i] > q[i] ? p[i] - q[i] : 0.0;
    for (size_t i = 0; i < vocab; i++)
        if (total > 0.0)
            rest[i] = p[i] > q[i] ? (p[i] - q[i]) / total : 0.0;
        else
            rest[i] = p[i];
}

static bool tokens_fit(const int32_t *draft, size_t k, size_t vocab) {
    for (size_t i = 0; i < k; i++)
        if (draft[i] < 0 || (size_t)draft[i] >= vocab) return false;
    return true;
}

int32_t rs_verify_deterministic(int32_t *tokens, const float *const *logits, const int32_t *draft,
                                const rs_sampler *sampler, const double *coins, double *p, int32_t *order, size_t k,
                                size_t vocab) {
    if (!tokens_fit(draft, k, vocab)) return RS_BAD_TOKEN;
    for (size_t i = 0;; i++) {
        tokens[i] = rs_sample(logits[i], sampler, coins[i], p, order, vocab);
        if (tokens[i] < 0) return tokens[i];
        if (i == k || tokens[i] != draft[i]) return (int32_t)i;
    }
}

bool rs_is_distribution(const double *q, size_t vocab) {
    double total = 0.0;
    bool negative = false;
    for (size_t i = 0; i < vocab; i++) {
        total += q[i];
        negative |= q[i] < 0.0;
    }
    return fabs(total - 1.0) <= Q_SUM_TOLERANCE && !negative; /* NaN fails too */
}

int32_t rs_verify_rejection(int32_t *tokens, const float *const *logits, const int32_t *draft,
                            const double *const *q_draft, const rs_sampler *sampler, const double *accept_coins,
                            const double *residual_coins, double *p, int32_t *order, size_t k, size_t vocab) {
    if (!tokens_fit(draft, k, vocab)) return RS_BAD_TOKEN;
    for (size_t i = 0; i < k; i++) {
        const double *q = q_draft[i];
        const int32_t status = rs_p_target(p, order, logits[i], sampler, vocab);
        if (status < 0) return status;
        if (!rs_is_distribution(q, vocab) || !(q[draft[i]] > 0.0)) return RS_BAD_DISTRIBUTION;
        tokens[i] = draft[i];
        if (accept_coins[i] * q[draft[i]] < p[draft[i]]) continue; /* u < p/q without the division */
        rs_residual(p, p, q, vocab);
        tokens[i] = rs_invert_cdf(p, residual_coins[i], vocab);
        return tokens[i] < 0 ? tokens[i] : (int32_t)i;
    }
    tokens[k] = rs_sample(logits[k], sampler, residual_coins[k], p, order, vocab);
    return tokens[k] < 0 ? tokens[k] : (int32_t)k;
}
