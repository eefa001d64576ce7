/* account.c: what steps that C runs by themselves may lose, the C twin of what refspec/adaptive/budget.py and refspec/adaptive/probe.py reckon
 * with between two looks of the window. Sums decay there and not here: a call runs a few steps only.
 */
#include "refspec.h"

#include <math.h>

static const double KEEP = 1 - 1.0 / 96; /* of the counts of a text, per stake */
static const double GUESSED = 4;         /* stakes that the chance of all texts is worth */

double rs_account_stake(rs_account *a, const rs_window *w, bool stood) {
    double before = a->shown * KEEP, best = -INFINITY, more = 0.0, chance = 1.0; /* more: 1 + d_2 + ... + d_2 .. d_k */
    a->staked = a->staked * KEEP + 1;
    a->stood = a->stood * KEEP + stood;
    for (size_t k = 1; k <= w->most; k++) {
        if (k > 1) chance *= w->depth[k - 1];
        more += chance;
        double worth = a->stood * more + a->staked * (1 - w->cost[k] / a->plain);
        if (worth > best) best = worth;
    }
    a->shown = best;
    return best - before;
}

bool rs_account_careful(const rs_account *a) { return fmin(a->reserve, a->allowance) < a->careful; }

size_t rs_account_length(const rs_account *a, const rs_window *w) {
    if (!rs_account_careful(a)) return w->most;
    double p = (a->stood + GUESSED * w->depth[0]) / (a->staked + GUESSED), most = 0.0, more = 0.0, chance = 1.0;
    size_t best = 1;
    for (size_t k = 1; k <= w->most; k++) {
        if (k > 1) chance *= w->depth[k - 1];
        more += chance;
        double gain = 1 + p * more - w->cost[k] / a->plain;
        if (k == 1 && gain > 0) break;
        if (gain > most) {
            best = k;
            most = gain;
        }
    }
    return best;
}

bool rs_account_count(rs_account *a, const rs_window *w, size_t before, size_t drafted, size_t decided) {
    double takes = rs_window_takes(w, before, drafted), gain = (double)decided - takes / a->plain, shows = gain;
    if (drafted == 1 && rs_account_careful(a)) shows = rs_account_stake(a, w, decided > 1) - (takes - w->cost[1]) / a->plain;
    a->reserve += gain;
    a->allowance += shows;
    return fmin(a->reserve, a->allowance) >= 0;
}
