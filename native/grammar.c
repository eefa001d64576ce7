/* Tokens through an automaton of bytes: refspec/grammar/tokens.py. */

#include "refspec.h"

void rs_grammar_walk(int32_t *after, const int32_t *table, int32_t dead, int32_t state, const uint8_t *byte,
                     const int32_t *child, const int32_t *end, const int32_t *ids, int32_t *nodes, int32_t *states) {
    int32_t waiting = 1; /* nodes that the automaton reaches, those of a level after those of the one above */
    nodes[0] = 0;
    states[0] = state;
    for (int32_t i = 0; i < waiting; i++) {
        int32_t node = nodes[i], q = states[i];
        for (int32_t e = end[node]; e < end[node + 1]; e++) after[ids[e]] = q;
        for (int32_t c = child[node]; c < child[node + 1]; c++) {
            int32_t next = table[(size_t)q * 256 + byte[c]];
            if (next == dead) continue;
            nodes[waiting] = c;
            states[waiting++] = next;
        }
    }
}
