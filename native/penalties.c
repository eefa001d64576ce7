/* penalties.c: refspec/reference/penalties.py, bit for bit: how the tokens so far change the next token's logits.
 *
 * Changes the row in place. Allocates nothing: the caller passes scratch. Legend: V vocabulary, n tokens of history.
 */
#include "refspec.h"

#include <string.h>

static const double LARGEST = 1e30; /* as in penalties.py */

static double power(double base, int32_t exponent) {
    double out = 1.0;
    for (int32_t i = 0; base > 1.0 && i < exponent && out < LARGEST; i++) out *= base;
    return out;
}

static size_t newest(size_t n, int32_t last) { return last < 0 || (size_t)last > n ? n : (size_t)last; }

/* Repetition, frequency and presence of the n tokens; counts [V] is 0 before and after. */
static void count(float *row, const int32_t *tokens, size_t n, const rs_penalties *p, int32_t *counts) {
    for (size_t i = 0; i < n; i++) counts[tokens[i]]++;
    for (size_t i = 0; i < n; i++) {
        int32_t times = counts[tokens[i]];
        if (!times) continue;
        double x = row[tokens[i]];
        x = x <= 0 ? x * p->repeat : x / p->repeat;
        row[tokens[i]] = (float)(x - times * p->frequency - p->presence);
        counts[tokens[i]] = 0;
    }
}

/* DRY: no repetition reaches beyond the newest breaker, and no breaker is punished. z [n] is scratch, longest [V] is 0
 * before and after. */
static void dry(float *row, const int32_t *tokens, size_t n, const rs_penalties *p, int32_t *z, int32_t *longest) {
    int32_t length = (int32_t)n, limit = length, allowed = p->dry_allowed_length;
    for (int32_t back = 0; p->breaks && back < length; back++)
        if (p->breaks[tokens[length - 1 - back]] > 0) {
            limit = back;
            break;
        }
    if (limit < allowed || length <= allowed) return;
    /* The Z-function of the tokens read backward: x[i] is tokens[length - 1 - i]. */
    const int32_t *x = tokens + length - 1;
    int32_t left = 0, right = 0;
    for (int32_t j = 1; j < length; j++) {
        int32_t same = 0;
        if (j < right) same = z[j - left] < right - j ? z[j - left] : right - j;
        while (j + same < length && x[-same] == x[-(j + same)]) same++;
        z[j] = same;
        if (j + same > right) left = j, right = j + same;
        if (same > limit) same = limit;
        if (same < allowed || (p->breaks && p->breaks[x[1 - j]] > 0)) continue;
        if (same > longest[x[1 - j]]) longest[x[1 - j]] = same;
    }
    for (int32_t j = 1; j < length; j++) {
        int32_t token = x[1 - j], same = longest[token];
        if (!same) continue;
        row[token] = (float)((double)row[token] - p->dry_multiplier * power(p->dry_base, same - allowed));
        longest[token] = 0;
    }
}

void rs_penalize(float *row, const int32_t *history, size_t n, const rs_penalties *p) {
    if (p->counting && n) {
        size_t last = newest(n, p->repeat_last_n);
        count(row, history + n - last, last, p, p->scratch);
    }
    if (p->dry && n) {
        size_t last = newest(n, p->dry_last_n);
        dry(row, history + n - last, last, p, p->lengths, p->scratch);
    }
}
