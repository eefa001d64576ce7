/* window.c: when a draft ends, the C twin of the decisions of refspec/windows/window.py and of refspec/windows/belief.py's chances.
 *
 * Nothing is learned here: counts, costs and the rate to beat are read, never written. The head of window.py says what is computed, and why.
 */
#include "refspec.h"

#include <math.h>

enum { BIN = 2, CELL = 8 }; /* judged tokens that the guess behind a bin, and behind a cell, is worth */

/* Chance that a token drafted at this depth stands, if all before it do. */
static double chance_of(const rs_window *w, double confidence, size_t depth) {
    size_t b = 0;
    if (isnan(confidence))
        b = w->n_bins - 1;
    else
        while (b + 2 < w->n_bins && w->edges[b] <= confidence) b++;
    const double *bin = w->bins + 2 * b;
    double guess = (bin[1] + BIN * (isnan(confidence) ? 0.5 : confidence)) / (bin[0] + BIN);
    const double *cell = w->cells + 2 * (b * w->n_depths + (depth < w->n_depths ? depth : w->n_depths - 1));
    return (cell[1] + CELL * guess) / (cell[0] + CELL);
}

/* Seconds of a step of k drafted tokens after one of `before` rows, what a change of the batch size costs included. */
static double cost_after(const rs_window *w, size_t before, size_t k) {
    int changes = (before != 0 && before != k + 1) + (k != w->home);
    return w->cost[k] + w->change * changes;
}

void rs_window_plan(const rs_window *w, size_t before, size_t room) {
    for (size_t i = 0; i < room; i++) {
        double least = INFINITY, more = 1.0, chance = 1.0, own = cost_after(w, before, i);
        double run = i ? w->row : 0.0; /* its own row has run when token i is asked about */
        for (size_t j = i + 1; j <= room; j++) {
            if (j > i + 1) {
                chance *= w->depth[j - 1];
                more += chance;
            }
            double limit = w->rate * (cost_after(w, before, j) - own - run) / more;
            if (limit < least) least = limit;
        }
        w->limits[i] = least;
    }
}

bool rs_window_stop(const rs_window *w, size_t i, double confidence) {
    w->chances[i] = chance_of(w, confidence, i) * (i ? w->chances[i - 1] : 1.0);
    return w->chances[i] - w->limits[i] < 0;
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
