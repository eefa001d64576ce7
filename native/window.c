/* window.c: when a draft ends and what is learned of it, the C twin of `stop` and `keep` of refspec/adaptive/policy.py and of
 * refspec/adaptive/acceptance_model.py, whose heads say what is computed, and why.
 *
 * Costs and the rate to beat are read, never written: they are the window's.
 */
#include "refspec.h"

#include <math.h>

enum { BIN = 2, CELL = 8 }; /* judged tokens that the guess behind a bin, and behind a cell, is worth */
static const double KEEP = 1 - 1.0 / 500; /* of every count, per count added to the same cell */
static const double ASKED = 0.02;         /* weight of a new asking in an old average */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t bin_of(const rs_window *w, double confidence) {
    if (isnan(confidence)) return w->n_bins - 1;
    size_t b = 0;
    while (b + 2 < w->n_bins && w->edges[b] <= confidence) b++;
    return b;
}

static double *cell_of(const rs_window *w, size_t bin, size_t depth) {
    return w->cells + 2 * (bin * w->n_depths + smaller(depth, w->n_depths - 1));
}

/* Chance that a token drafted at this depth stands, if all before it do. */
static double chance_of(const rs_window *w, double confidence, size_t depth) {
    size_t b = bin_of(w, confidence);
    const double *bin = w->bins + 2 * b, *cell = cell_of(w, b, depth);
    double guess = (bin[1] + BIN * (isnan(confidence) ? 0.5 : confidence)) / (bin[0] + BIN);
    return (cell[1] + CELL * guess) / (cell[0] + CELL);
}

static void count(double *cell, double stood) {
    cell[0] = cell[0] * KEEP + 1;
    cell[1] = cell[1] * KEEP + stood;
}

double rs_window_takes(const rs_window *w, size_t before, size_t k) {
    return w->cost[k] + w->change * (before != 0 && before != k + 1);
}

/* The same, and what the way back will cost; what cannot be drafted now is not gone back to. */
static double cost_after(const rs_window *w, size_t before, size_t k) {
    return rs_window_takes(w, before, k) + w->change * (k != smaller(w->home, w->room));
}

size_t rs_window_plan(rs_window *w, size_t before, size_t room) {
    size_t hopeful = room;
    w->room = room;
    for (size_t i = 0; i < room; i++) {
        double least = INFINITY, gain = 1.0, more = 1.0, chance = 1.0, own = cost_after(w, before, i);
        double run = i ? w->row : 0.0; /* its own row has run when token i is asked about */
        for (size_t j = i + 1; j <= room; j++) {
            if (j > i + 1) {
                chance *= w->depth[j - 1];
                more += chance;
            }
            double limit = w->rate * (cost_after(w, before, j) - own - run) / more;
            if (limit < least) {
                least = limit;
                gain = more;
            }
        }
        w->limits[i] = least;
        w->gains[i] = gain;
        if (i && least >= 1.0 && i < hopeful) hopeful = i;
    }
    return hopeful;
}

bool rs_window_stop(const rs_window *w, size_t i, double confidence) {
    w->chances[i] = chance_of(w, confidence, i) * (i ? w->chances[i - 1] : 1.0);
    double *asked = w->surplus + 2 * i, gain = w->chances[i] - w->limits[i];
    asked[0] += 1;
    double share = 1 / asked[0];
    asked[1] += ((gain > 0 ? gain : 0) * w->gains[i] - asked[1]) * (share > ASKED ? share : ASKED);
    return w->chances[i] < w->limits[i];
}

size_t rs_window_keep(const rs_window *w, size_t before, size_t drafted) {
    if (drafted < 2) return drafted;
    size_t best = 0;
    double value = -INFINITY, tokens = 0.0;
    for (size_t j = 0; j <= drafted; j++) {
        if (j) tokens += w->chances[j - 1];
        double worth = tokens - w->rate * cost_after(w, before, j);
        if (worth > value) {
            best = j;
            value = worth;
        }
    }
    return best;
}

void rs_window_learn(const rs_window *w, const float *confidence, size_t asked, bool stopped, size_t drafted, size_t accepted) {
    /* A token that was not drafted counts with its chance, or depths would be judged by sure tokens only. */
    if (stopped && drafted == accepted && drafted + 1 == asked) count(w->depths + 2 * drafted, chance_of(w, confidence[drafted], drafted));
    for (size_t i = 0; i < smaller(drafted, accepted + 1); i++) {
        size_t b = bin_of(w, confidence[i]);
        double stood = i < accepted;
        count(w->bins + 2 * b, stood);
        count(cell_of(w, b, i), stood);
        count(w->depths + 2 * i, stood);
    }
}
