/* cycle.c: a decode cycle through llama.cpp's own functions: run the target and verify, extend the drafter, draft.
 *
 * Not a binding: no llama.cpp header is read. The functions arrive as addresses, the batch is a mirror of `struct
 * llama_batch` (refspec/llama/native_calls.py). The Python twins are refspec/llama/target.py with
 * refspec/decoding/verifier.py, and refspec/llama/eagle3.py. A step of a small model takes a millisecond or two, of
 * which the interpreter would take a good part.
 */
#include "refspec.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* Seconds by the wall clock, which may be set back. */
static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Run one call of llama.cpp under the clock; RS_ENGINE leaves llama.cpp's own answer in *code. */
static int32_t timed(int32_t *code, double *seconds, int32_t (*call)(void *, rs_batch), void *context, rs_batch batch) {
    double began = now();
    *code = call(context, batch);
    double took = now() - began;
    if (took > 0) *seconds += took;
    return *code ? RS_ENGINE : RS_OK;
}

int32_t rs_target_run(rs_target *t, size_t rows, int32_t first) {
    if (rows == 0 || rows > t->capacity) return RS_BAD_CONFIG;
    t->logits = NULL;
    t->batch.n_tokens = (int32_t)rows;
    for (size_t i = 0; i < rows; i++) t->batch.pos[i] = first + (int32_t)i;
    int32_t status = timed(&t->code, &t->seconds, t->decode, t->context, t->batch);
    if (status != RS_OK) return status;
    for (size_t s = 0; s < t->n_states; s++) {
        const float *from = t->layer_input(t->context, t->layers[s]);
        for (size_t i = 0; i < rows; i++)
            memcpy(t->features + (i * t->n_states + s) * t->width, from + i * t->width, t->width * sizeof *from);
    }
    t->logits = t->logits_ith(t->context, -(int32_t)rows);
    if (!t->logits) return RS_ENGINE;
    /* A NaN or an infinity somewhere has reached the newest row, which looks at all others; -inf alone is legal. */
    const float *last = t->logits + (rows - 1) * t->vocab;
    int64_t best = rs_argmax(last, t->vocab);
    return best >= 0 && isfinite(last[best]) ? RS_OK : RS_NOT_FINITE;
}

int32_t rs_verify_step(rs_verifier *v, int32_t pending, const int32_t *draft, size_t k, int32_t first,
                       uint64_t position) {
    rs_target *t = v->target;
    size_t pair = v->pair_rows && k == 0; /* the second token is a copy, which nothing that follows may see */
    v->ran = false;
    if (k + 1 + pair > t->capacity) return RS_BAD_CONFIG;
    t->batch.token[0] = pending;
    if (pair) t->batch.token[1] = pending;
    for (size_t i = 0; i < k; i++) t->batch.token[i + 1] = draft[i];
    int32_t status = rs_target_run(t, k + 1 + pair, first);
    if (status != RS_OK) return status;

    v->ran = true;
    if (v->penalties) {
        v->history[first] = pending;
        for (size_t i = 0; i < k; i++) v->history[first + 1 + (int32_t)i] = draft[i];
    }
    for (size_t i = 0; i <= k; i++) {
        v->rows[i] = t->logits + i * t->vocab;
        int32_t counted = first + (int32_t)i + 1 - v->counted_from; /* the row's own token is its newest */
        if (v->penalties && counted > 0)
            rs_penalize(t->logits + i * t->vocab, v->history + v->counted_from, (size_t)counted, v->penalties);
        /* argmax needs no coin */
        v->coins[i] = v->sampler->temperature > 0.0 ? rs_coin(v->seed, position + i, v->stream) : 0.0;
    }
    int32_t accepted =
        rs_verify_deterministic(v->tokens, v->rows, draft, v->sampler, v->coins, v->p, v->order, k, t->vocab);
    if (accepted < 0) return accepted;

    size_t kept = (size_t)accepted + 1;
    if (kept < k + 1 + pair && !v->remove(v->memory, 0, first + (int32_t)kept, -1)) return RS_ENGINE;
    return accepted;
}

/* DECODE rows of the steps' batch at positions first..; leaves the newest row's outputs in logits and state. */
static int32_t decode(rs_chain *c, size_t rows, int32_t first) {
    c->logits = c->state = NULL;
    c->steps.n_tokens = (int32_t)rows;
    for (size_t i = 0; i < rows; i++) c->steps.pos[i] = first + (int32_t)i;
    int32_t status = timed(&c->code, &c->seconds, c->decode, c->decoder, c->steps);
    if (status != RS_OK) return status;
    c->logits = c->logits_ith(c->decoder, -1);
    c->state = c->states(c->decoder) + (rows - 1) * c->width;
    return c->logits ? RS_OK : RS_ENGINE;
}

int32_t rs_chain_extend(rs_chain *c, const int32_t *tokens, const float *features, size_t rows, int32_t first) {
    if (rows == 0 || rows > c->capacity) return RS_BAD_CONFIG;
    size_t width = c->n_states * c->target_width;
    for (size_t i = 0; i < rows; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= c->vocab) return RS_BAD_TOKEN; /* llama.cpp reads -1 as "no token" */
    if (!rs_all_finite(features, rows * width)) return RS_NOT_FINITE; /* llama.cpp would compute on */
    for (size_t s = 0; s < c->n_states; s++) c->sources[s] = features + s * c->target_width;
    rs_gather_features(c->features.embd, c->sources, c->fc_norm, c->eps, rows, c->n_states, c->target_width, width,
                       width);
    c->features.n_tokens = (int32_t)rows;
    for (size_t i = 0; i < rows; i++) c->features.pos[i] = (int32_t)i; /* ENCODE keeps nothing: any positions */
    int32_t status = timed(&c->code, &c->seconds, c->encode, c->encoder, c->features);
    if (status != RS_OK) return status;
    memcpy(c->steps.embd, c->states(c->encoder), rows * c->width * sizeof(float));
    memcpy(c->last_g, c->steps.embd + (rows - 1) * c->width, c->width * sizeof(float));
    memcpy(c->steps.token, tokens, rows * sizeof *tokens);
    return decode(c, rows, first);
}

int32_t rs_chain_draft(rs_chain *c, int32_t *tokens, float *confidence, size_t k, int32_t first) {
    for (size_t i = 0; i < k; i++) {
        int64_t best = rs_argmax_prob(&confidence[i], c->logits, c->vocab);
        if (best < 0) return RS_NOT_FINITE;
        tokens[i] = (int32_t)best;
        if (i + 1 == k) break; /* the last draft token needs no row of its own */
        rs_draft_feedback(c->steps.embd, c->state, c->output_norm, c->eps, c->output_norm != NULL, c->width);
        c->steps.token[0] = tokens[i];
        int32_t status = decode(c, 1, first + (int32_t)i);
        if (status != RS_OK) return status;
    }
    return RS_OK;
}
