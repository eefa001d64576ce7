/* burst.c: several steps of the decode cycle in one call, the loop of refspec/decoding/cycle.py for a target on llama.cpp and a drafter in C.
 *
 * Where a step takes a millisecond or two, the interpreter's share of it is not small: its code has left the caches whenever the target has
 * run. Each part is another file's: the draft eagle3.c's and window.c's, the verify step cycle.c's, what may be lost account.c's. What fails is left to the caller, who runs that
 * step alone and says in words why.
 */
#include "refspec.h"

/* Seconds since then; the wall clock may be set back in between. */
static double since(double then) {
    double took = rs_now() - then;
    return took > 0 ? took : 0;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Draft after the last of `rows` true rows: up to k tokens, none behind an end of text, as many of them as the window likes. */
static int32_t draft(const rs_burst *b, rs_step *s, int32_t *tokens, size_t k, size_t before, size_t rows, bool *stopped) {
    rs_eagle3_chain *c = b->chain;
    size_t n = 0;
    c->logits = c->true_logits;
    c->state = c->true_state;
    *stopped = false;
    if (b->window) k = rs_window_plan(b->window, before, k);
    while (n < k) {
        int32_t status = rs_eagle3_choose(c, &tokens[n], &b->confidence[n], n);
        if (status != RS_OK) return status;
        s->asked++;
        *stopped = b->window && rs_window_stop(b->window, n, b->confidence[n]);
        if (*stopped) break;
        n++;
        if (n == k || b->judge->ends[tokens[n - 1]]) break; /* the last draft token needs no row of its own */
        status = rs_eagle3_follow(c, tokens[n - 1], rows + n - 1);
        if (status != RS_OK) return status;
    }
    s->drafted = (int32_t)(b->window ? rs_window_keep(b->window, before, n) : n);
    return RS_OK;
}

/* Whether penalties can be told what these tokens are. */
static bool known(const rs_judge *j, int32_t pending, const int32_t *drafted, size_t k) {
    const int8_t *breaks = j->penalties ? j->penalties->breaks : NULL;
    if (!breaks) return true;
    bool all = breaks[pending] >= 0;
    for (size_t i = 0; i < k; i++) all = all && breaks[drafted[i]] >= 0;
    return all;
}

size_t rs_burst_run(const rs_burst *b, int32_t pending, size_t before, size_t first, size_t rows, uint64_t position, size_t room) {
    rs_judge *j = b->judge;
    rs_target *t = j->target;
    rs_eagle3_chain *c = b->chain;
    float *features = t->features;
    rs_account account = b->account;
    double began = rs_now();
    size_t done = 0;
    bool over = false, stopped = false;
    j->stage = RS_RESTED;
    while (done < b->steps && room > 0 && first < b->n_ctx && !over && since(began) < b->seconds) {
        double step_began = rs_now(), target_before = t->seconds;
        rs_step *s = &b->ran[done];
        int32_t *drafted = b->drafted + done * b->draft, *tokens = b->tokens + done * (b->draft + 1);
        *s = (rs_step){0};
        if (c) {
            if (c->penalties) {
                c->text[first] = pending;
                c->decided = first + 1;
            }
            size_t k = smaller(smaller(b->draft, room - 1), smaller(b->n_ctx - first - 1, c->config->capacity + 1 - rows));
            if (b->window) k = smaller(k, rs_account_length(&account, b->window));
            if (draft(b, s, drafted, k, before, rows, &stopped) != RS_OK) break;
        } else if (features) {
            t->features = features + done * t->n_states * t->width;
        }
        s->drafter = c ? since(step_began) : 0.0;
        if (!known(j, pending, drafted, (size_t)s->drafted)) break;

        s->accepted = rs_judge_step(j, pending, drafted, (size_t)s->drafted, (int32_t)first, position);
        if (s->accepted < 0) break; /* its stage stays */
        size_t decided = (size_t)s->accepted + 1;
        for (size_t i = 0; i < decided; i++) {
            tokens[i] = j->tokens[i];
            over = over || j->ends[tokens[i]];
        }
        if (c) {
            double extending = rs_now();
            if (rs_eagle3_extend(c, tokens, t->features, decided, rows) != RS_OK) {
                j->stage = RS_KEEPING; /* the rows of this step are to be taken back */
                break;
            }
            s->drafter += since(extending);
            rows += decided;
        }
        if (b->window) rs_window_learn(b->window, b->confidence, (size_t)s->asked, stopped, (size_t)s->drafted, (size_t)s->accepted);
        j->stage = RS_RESTED;
        s->target = t->seconds - target_before;
        s->total = since(step_began);
        if (s->total < s->target + s->drafter) s->total = s->target + s->drafter;
        pending = tokens[decided - 1];
        first += decided;
        position += decided;
        room -= smaller(room, decided);
        done++;
        if (b->window && !rs_account_count(&account, b->window, before, (size_t)s->drafted, decided)) over = true;
        before = (size_t)s->drafted + 1;
    }
    t->features = features;
    return done;
}
