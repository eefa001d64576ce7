/* eagle3.c: refspec/reference/eagle3_forward.py for one row, in execution order; then chains of rows.
 *
 * Runs drafters that llama.cpp's graph cannot compute, and those so small that a call of llama.cpp costs more than the
 * computation (refspec/llama/native_eagle3.py). Source: EAGLE-3 (Li 2025), with the three norm switches of EAGLE 3.1.
 */
#include "refspec.h"

#include <math.h>
#include <string.h>

int32_t rs_eagle3_check(const rs_eagle3_config *c, const rs_eagle3_weights *w) {
    bool sizes = c->hidden && c->target_hidden && c->n_states && c->n_heads && c->n_kv_heads && c->head_dim &&
                 c->intermediate && c->vocab && c->draft_vocab && c->capacity;
    if (!sizes || c->n_heads % c->n_kv_heads || c->head_dim % 2) return RS_BAD_CONFIG;
    if (c->rope_style != RS_INTERLEAVED && c->rope_style != RS_HALF_SPLIT) return RS_BAD_CONFIG;
    if (c->feature_norm < RS_FEATURE_NONE || c->feature_norm > RS_FEATURE_PER_STATE) return RS_BAD_CONFIG;
    if (c->feedback != RS_PRE_NORM && c->feedback != RS_POST_NORM) return RS_BAD_CONFIG;
    if (c->residual != RS_RAW && c->residual != RS_NORMED) return RS_BAD_CONFIG;
    const rs_matrix *matrices[] = {&w->token_embd, &w->fc,       &w->attn_q, &w->attn_k,   &w->attn_v,
                                   &w->attn_output, &w->ffn_gate, &w->ffn_up, &w->ffn_down, &w->output};
    bool always = w->attn_norm && w->hidden_norm && w->ffn_norm;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) always = always && matrices[i]->data;
    bool norms = (c->feature_norm != RS_FEATURE_CONCAT || w->fc_norm) &&
                 (c->feature_norm != RS_FEATURE_PER_STATE || w->fc_norm_state) &&
                 (!c->qk_norm || (w->q_norm && w->k_norm)) &&
                 ((!c->head_norm && c->feedback == RS_PRE_NORM) || w->output_norm);
    return always && norms ? RS_OK : RS_BAD_CONFIG;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Floats for the widest input of a matrix, quantized: no type of ggml is wider than float32. */
static size_t packed_size(const rs_eagle3_config *c) {
    size_t inputs = larger(c->n_states * c->target_hidden, 2 * c->hidden);
    return larger(inputs, larger(c->n_heads * c->head_dim, c->intermediate)) + 64;
}

size_t rs_eagle3_scratch(const rs_eagle3_config *c) {
    size_t step = 6 * c->hidden + 2 * c->n_heads * c->head_dim + 2 * c->intermediate + c->capacity;
    return packed_size(c) + larger(step, c->hidden + c->n_states * c->target_hidden);
}

enum { SHARED = 1 << 15 }; /* multiply-adds per thread from which sharing is faster than waking the threads */

/* out [O] = w input, by one thread or by a team; each output is summed by one thread. */
typedef struct matmul_task {
    float *out;
    const rs_matrix *w;
    const void *input; /* [I], quantized if the matrix needs it */
    size_t n_out, n_in;
    const rs_team *team;
} matmul_task;

static void multiply(const matmul_task *p, size_t from, size_t to) {
    const char *row = (const char *)p->w->data + from * p->w->row_bytes;
    if (!p->w->dot) {
        rs_matvec(p->out + from, (const float *)row, p->input, 1, to - from, p->n_in);
        return;
    }
    for (size_t o = from; o < to; o++, row += p->w->row_bytes)
        p->w->dot((int32_t)p->n_in, p->out + o, 0, row, 0, p->input, 0, 1);
}

static void multiply_share(void *data) {
    const matmul_task *p = data;
    size_t rank = (size_t)p->team->rank(), size = (size_t)p->team->size(); /* may be fewer threads than asked for */
    multiply(p, p->n_out * rank / size, p->n_out * (rank + 1) / size);
}

/* out [O] = w x, plus bias [O] unless it is NULL. */
static void linear(float *out, const rs_matrix *w, const float *bias, const float *x, size_t n_out, size_t n_in,
                   float *packed, const rs_team *team) {
    const bool packs = w->dot && w->pack;
    if (packs) w->pack(x, packed, (int64_t)n_in);
    const void *input = packs ? (const void *)packed : x;
    matmul_task p = {.out = out, .w = w, .input = input, .n_out = n_out, .n_in = n_in, .team = team};
    if (team && n_out * n_in >= (size_t)SHARED * team->threads)
        team->parallel(multiply_share, &p, team->threads, 0);
    else
        multiply(&p, 0, n_out);
    for (size_t i = 0; bias && i < n_out; i++) out[i] += bias[i];
}

void rs_eagle3_encode(float *state, float *scratch, const rs_eagle3_config *c, const rs_eagle3_weights *w,
                      const float *feature) {
    size_t width = c->n_states * c->target_hidden;
    float *packed = scratch;
    const float *normed = scratch += packed_size(c); /* [n_states*Ht] */
    if (c->feature_norm == RS_FEATURE_CONCAT) {
        rs_rms_norm(scratch, feature, w->fc_norm, c->rms_eps, 1, width);
    } else if (c->feature_norm == RS_FEATURE_PER_STATE) {
        for (size_t s = 0; s < c->n_states; s++)
            rs_rms_norm(scratch + s * c->target_hidden, feature + s * c->target_hidden, w->fc_norm_state[s],
                        c->rms_eps, 1, c->target_hidden);
    } else {
        normed = feature;
    }
    linear(state, &w->fc, w->fc_bias, normed, c->hidden, width, packed, c->team); /* [H] */
}

void rs_draft_feedback(float *out, const float *h, const float *output_norm, float eps, int32_t post_norm,
                       size_t width) {
    if (post_norm)
        rs_rms_norm(out, h, output_norm, eps, 1, width);
    else if (out != h)
        memcpy(out, h, width * sizeof *out);
}

int32_t rs_eagle3_step(float *logits, float *hidden, float *next_state, float *k_cache, float *v_cache,
                       float *attn_weights, float *scratch, const rs_eagle3_config *c, const rs_eagle3_weights *w,
                       int64_t token, const float *state, int64_t position, size_t row) {
    if (token < 0 || (uint64_t)token >= c->vocab) return RS_BAD_TOKEN;
    if (row >= c->capacity) return RS_CACHE_FULL;
    size_t H = c->hidden, q_width = c->n_heads * c->head_dim, kv_width = c->n_kv_heads * c->head_dim;
    float *packed = scratch;
    float *e = packed + packed_size(c), *g = e + H;          /* [H] each and adjacent: together the block input [2H] */
    float *q = g + H, *mixed = q + q_width;                  /* [nh*hd] */
    float *y = mixed + q_width, *z = y + H;                  /* [H] */
    float *gate = z + H, *up = gate + c->intermediate;       /* [F] */
    float *h = up + c->intermediate, *n = h + H;             /* [H] */
    float *scores = n + H;                                   /* [capacity] */
    float *k = k_cache + row * kv_width, *v = v_cache + row * kv_width; /* [nkv*hd], written in place */
    int64_t visible = (int64_t)row + 1;

    const void *embedding = (const char *)w->token_embd.data + (size_t)token * w->token_embd.row_bytes;
    if (w->token_embd.unpack) w->token_embd.unpack(embedding, e, (int64_t)H);
    /* embedding first, then state */
    rs_rms_norm(e, w->token_embd.unpack ? e : embedding, w->attn_norm, c->rms_eps, 1, H);
    rs_rms_norm(g, state, w->hidden_norm, c->rms_eps, 1, H);

    linear(k, &w->attn_k, w->attn_k_bias, e, kv_width, 2 * H, packed, c->team);
    linear(v, &w->attn_v, w->attn_v_bias, e, kv_width, 2 * H, packed, c->team);
    if (c->qk_norm) rs_rms_norm(k, k, w->k_norm, c->rms_eps, c->n_kv_heads, c->head_dim);
    rs_rope(k, k, &position, w->rope_freqs, c->rope_theta, c->rope_style, 1, c->n_kv_heads, c->head_dim);
    /* with one layer, later rows read only k and v */
    if (!logits && !hidden && !next_state && !attn_weights) return RS_OK;

    linear(q, &w->attn_q, w->attn_q_bias, e, q_width, 2 * H, packed, c->team);
    if (c->qk_norm) rs_rms_norm(q, q, w->q_norm, c->rms_eps, c->n_heads, c->head_dim);
    rs_rope(q, q, &position, w->rope_freqs, c->rope_theta, c->rope_style, 1, c->n_heads, c->head_dim);
    rs_attention(mixed, attn_weights, scores, q, k_cache, v_cache, &visible, 1, row + 1, c->n_heads, c->n_kv_heads,
                 c->head_dim);

    const float *residual = c->residual == RS_NORMED ? g : state;
    linear(y, &w->attn_output, w->attn_output_bias, mixed, H, q_width, packed, c->team);
    for (size_t i = 0; i < H; i++) y[i] = residual[i] + y[i];

    rs_rms_norm(z, y, w->ffn_norm, c->rms_eps, 1, H);
    linear(gate, &w->ffn_gate, w->ffn_gate_bias, z, c->intermediate, H, packed, c->team);
    linear(up, &w->ffn_up, w->ffn_up_bias, z, c->intermediate, H, packed, c->team);
    rs_swiglu(gate, gate, up, c->intermediate);
    linear(h, &w->ffn_down, w->ffn_down_bias, gate, H, c->intermediate, packed, c->team);
    for (size_t i = 0; i < H; i++) h[i] = y[i] + h[i];

    if (c->head_norm) /* read from h before next_state is written: next_state may be `state` itself */
        rs_rms_norm(n, h, w->output_norm, c->rms_eps, 1, H);
    if (logits) linear(logits, &w->output, w->output_bias, c->head_norm ? n : h, c->draft_vocab, H, packed, c->team);
    if (hidden) memcpy(hidden, h, H * sizeof *h);
    if (next_state) rs_draft_feedback(next_state, h, w->output_norm, c->rms_eps, c->feedback == RS_POST_NORM, H);
    return RS_OK;
}

int32_t rs_eagle3_extend(rs_eagle3_chain *c, const int32_t *tokens, const float *features, size_t rows, size_t first) {
    size_t width = c->config->n_states * c->config->target_hidden;
    if (first > c->config->capacity || rows > c->config->capacity - first) return RS_CACHE_FULL;
    for (size_t i = 0; i < rows; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= c->config->vocab) return RS_BAD_TOKEN;
    if (!rs_all_finite(features, rows * width)) return RS_NOT_FINITE;
    for (size_t i = 0; i < rows; i++) {
        bool last = i + 1 == rows;
        rs_eagle3_encode(c->true_state, c->scratch, c->config, c->weights, features + i * width);
        int32_t status = rs_eagle3_step(last ? c->true_logits : NULL, NULL, last ? c->true_state : NULL, c->k_cache,
                                        c->v_cache, NULL, c->scratch, c->config, c->weights, tokens[i], c->true_state,
                                        (int64_t)(first + i), first + i);
        if (status != RS_OK) return status;
    }
    c->logits = c->true_logits;
    c->state = c->true_state;
    return RS_OK;
}

int32_t rs_eagle3_survey(rs_eagle3_chain *c, double *mean_log_probability, const int32_t *tokens, const float *features,
                         size_t rows, size_t first) {
    size_t width = c->config->n_states * c->config->target_hidden;
    double sum = 0.0;
    for (size_t i = 0; i < rows; i++) {
        int32_t status = rs_eagle3_extend(c, tokens + i, features + i * width, 1, first + i);
        if (status != RS_OK) return status;
        float confidence;
        if (rs_argmax_prob(&confidence, c->true_logits, c->config->draft_vocab) < 0) return RS_NOT_FINITE;
        sum += log((double)confidence);
    }
    *mean_log_probability = sum / (double)rows;
    return RS_OK;
}

int32_t rs_eagle3_follow(rs_eagle3_chain *c, int32_t token, size_t row) {
    int32_t status = rs_eagle3_step(c->drafted_logits, NULL, c->drafted_state, c->k_cache, c->v_cache, NULL,
                                    c->scratch, c->config, c->weights, token, c->state, (int64_t)row, row);
    if (status != RS_OK) return status;
    c->logits = c->drafted_logits;
    c->state = c->drafted_state;
    return RS_OK;
}

/* The logits [D] of the token at position n: the newest row's, under the penalties of the n tokens before it. */
static const float *chosen_by(rs_eagle3_chain *c, size_t n) {
    size_t D = c->config->draft_vocab;
    if (!c->penalties || n <= c->counted_from) return c->logits;
    for (size_t i = 0; i < D; i++) c->row[c->d2t ? c->d2t[i] : (int32_t)i] = c->logits[i];
    rs_penalize(c->row, c->history + c->counted_from, n - c->counted_from, c->penalties);
    for (size_t i = 0; i < D; i++) c->penalized[i] = c->row[c->d2t ? c->d2t[i] : (int32_t)i];
    return c->penalized;
}

/* The likeliest token after the newest row, the i-th of its draft. */
static int32_t choose(rs_eagle3_chain *c, int32_t *token, float *confidence, size_t i) {
    int64_t best = rs_argmax_prob(confidence, chosen_by(c, c->decided + i), c->config->draft_vocab);
    if (best < 0) return RS_NOT_FINITE;
    *token = c->d2t ? c->d2t[best] : (int32_t)best;
    if (c->penalties) c->history[c->decided + i] = *token;
    return RS_OK;
}

int32_t rs_eagle3_draft(rs_eagle3_chain *c, int32_t *tokens, float *confidence, size_t k, size_t first) {
    for (size_t i = 0; i < k; i++) {
        int32_t status = choose(c, &tokens[i], &confidence[i], i);
        if (status != RS_OK) return status;
        if (i + 1 == k) break; /* the last draft token needs no row of its own */
        status = rs_eagle3_follow(c, tokens[i], first + i);
        if (status != RS_OK) return status;
    }
    return RS_OK;
}
