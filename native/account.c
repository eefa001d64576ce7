/* account.c: what steps that C runs by themselves may lose, the C twin of what refspec/windows/account.py and refspec/windows/stakes.py reckon
 * with between two looks of the window. Sums decay there and not here: a call runs a few steps only.
 */
#include "refspec.h"

#include <math.h>

static const double KEEP = 1 - 1.0 / 96; /* of the counts of a text, per stake */

double rs_account_stake(rs_account *a, const rs_window *w, bool stood) {
    double before = a->shown * KEEP, best = -INFINITY, more = 0.0, chance = 1.0;
    a->staked = a->staked * KEEP + 1;
    a->stood = a->stood * KEEP + stood;
    for (size_t k = 1; k <= w->most; k++) {
        more += chance;
        double worth = a->stood * more + a->staked * (1 - w->cost[k] / a->plain);
        if (worth > best) best = worth;
        if (k < w->most) chance *= w->depth[k];
    }
    a->shown = best;
    return best - before;
}

bool rs_account_careful(const rs_account *a) { return fmin(a->reserve, a->allowance) < a->careful; }

bool rs_account_count(rs_account *a, const rs_window *w, size_t before, size_t drafted, size_t decided) {
    double takes = rs_window_takes(w, before, drafted), gain = (double)decided - takes / a->plain, shows = gain;
    if (drafted == 1 && rs_account_careful(a)) shows = rs_account_stake(a, w, decided > 1) - (takes - w->cost[1]) / a->plain;
    a->reserve += gain;
    a->allowance += shows;
    return fmin(a->reserve, a->allowance) >= 0;
}
