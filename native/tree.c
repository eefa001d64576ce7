/* tree.c: refspec/reference/tree_verify.py, function by function, bit for bit; see sampling.c for how that is possible.
 *
 * Row 0 is the pending token, row i + 1 is node i. Allocates nothing: the caller passes scratch.
 *
 * Legend: N nodes, V vocabulary, h height of the tree.
 */
#include "refspec.h"

enum { ROOT = -1 }; /* the parent of the nodes that follow the pending token */

static int32_t check(const int32_t *draft, const int32_t *parents, size_t n_nodes, size_t vocab) {
    for (size_t i = 0; i < n_nodes; i++) {
        if (parents[i] < ROOT || parents[i] >= (int32_t)i) return RS_BAD_TREE;
        if (draft[i] < 0 || (size_t)draft[i] >= vocab) return RS_BAD_TOKEN;
    }
    return RS_OK;
}

/* The first child of `parent` at or after node i, n_nodes when there is none. */
static size_t next_child(const int32_t *parents, int32_t parent, size_t i, size_t n_nodes) {
    while (i < n_nodes && parents[i] != parent) i++;
    return i;
}

int32_t rs_verify_tree_deterministic(int32_t *tokens, int32_t *path, const float *const *logits, const int32_t *draft,
                                     const int32_t *parents, const rs_sampler *sampler, const double *coins, double *p,
                                     int32_t *order, size_t n_nodes, size_t vocab) {
    const int32_t status = check(draft, parents, n_nodes, vocab);
    if (status < 0) return status;
    int32_t node = ROOT;
    for (int32_t accepted = 0;; accepted++) {
        const int32_t token = rs_sample(logits[node + 1], sampler, coins[accepted], p, order, vocab);
        if (token < 0) return token;
        tokens[accepted] = token;
        size_t child = next_child(parents, node, (size_t)(node + 1), n_nodes);
        while (child < n_nodes && draft[child] != token) child = next_child(parents, node, child + 1, n_nodes);
        if (child == n_nodes) return accepted;
        path[accepted] = node = (int32_t)child;
    }
}

void rs_without(double *q, int32_t token, size_t vocab) {
    double total = 0.0;
    q[token] = 0.0;
    for (size_t i = 0; i < vocab; i++) total += q[i];
    if (total > 0.0)
        for (size_t i = 0; i < vocab; i++) q[i] /= total;
}

int32_t rs_verify_tree_rejection(int32_t *tokens, int32_t *path, const float *const *logits, const int32_t *draft,
                                 const int32_t *parents, const double *const *distributions, const rs_sampler *sampler,
                                 const double *accept_coins, const double *residual_coins, double *p, double *q,
                                 int32_t *order, size_t n_nodes, size_t width, size_t vocab) {
    int32_t status = check(draft, parents, n_nodes, vocab);
    if (status < 0) return status;
    int32_t node = ROOT;
    for (int32_t level = 0;; level++) {
        size_t child = next_child(parents, node, (size_t)(node + 1), n_nodes);
        if (child == n_nodes) { /* no children: draw from the target's distribution */
            tokens[level] = rs_sample(logits[node + 1], sampler, residual_coins[level], p, order, vocab);
            return tokens[level] < 0 ? tokens[level] : level;
        }
        status = rs_p_target(p, order, logits[node + 1], sampler, vocab);
        if (status < 0) return status;
        const double *distribution = distributions[node + 1];
        if (!distribution || !rs_is_distribution(distribution, vocab)) return RS_BAD_DISTRIBUTION;
        for (size_t i = 0; i < vocab; i++) q[i] = distribution[i];
        const double *u = accept_coins + (size_t)level * width;
        for (; child < n_nodes; child = next_child(parents, node, child + 1, n_nodes)) {
            const int32_t token = draft[child];
            if (!(q[token] > 0.0)) return RS_BAD_DISTRIBUTION;
            if (*u++ * q[token] < p[token]) break; /* u < p/q without the division */
            rs_residual(p, p, q, vocab);
            rs_without(q, token, vocab);
        }
        if (child == n_nodes) { /* no sibling is accepted */
            tokens[level] = rs_invert_cdf(p, residual_coins[level], vocab);
            return tokens[level] < 0 ? tokens[level] : level;
        }
        tokens[level] = draft[child];
        path[level] = node = (int32_t)child;
    }
}
