/* packed_matmul.h: how weights lie in panels, how inputs are prepared, and what an instruction set provides; for
 * packed_*.c and matmul_hook.c.
 *
 * A panel is 16 rows of weights side by side: where a row of the file has a 32-bit word of four codes, a panel has 16
 * such words, one of each row. One load then feeds 16 sums, and no sum runs across a register.
 */
#ifndef REFSPEC_PACKED_MATMUL_H
#define REFSPEC_PACKED_MATMUL_H

#include "refspec.h"

enum { PANEL = 16, TILE = 8, TOGETHER = 64 }; /* weight rows of a panel; input rows of a tile and of a batch, at most */
enum { ROWS_TOGETHER = 4 };  /* inputs of a panel_set's `rows`, at most */
enum { PREPARED = 2048 }; /* bytes of a prepared input row's chunk, at most */
/* numbers in a block of ggml's K types, its groups of 32; numbers in other blocks */
enum { K_BLOCK = 256, K_GROUPS = 8, BLOCK = 32 };

/* ggml_type of weights, and of inputs */
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7, TYPE_Q8_0 = 8, TYPE_Q8_1 = 9 };
enum { TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14, TYPE_Q8_K = 15 };

/* One block of each of 16 rows. Word t of 32 numbers holds the codes of numbers 4t..4t+3. `lo` holds word t in the low
 * halves of its bytes and word t + 4 in the high ones. What is read together lies together: memory is twice as fast. */
typedef struct panel_q8_0 { uint16_t d[PANEL]; uint8_t codes[8][4 * PANEL]; } panel_q8_0; /* codes + 128 */
typedef struct group_32 { uint8_t lo[4][4 * PANEL], hi[4 * PANEL]; } group_32; /* hi only of 5 bits; its bit t: of word t */
typedef struct panel_q4_0 { uint16_t d[PANEL]; uint8_t lo[4][4 * PANEL]; } panel_q4_0;
typedef struct panel_q4_1 { uint16_t d[PANEL], m[PANEL]; uint8_t lo[4][4 * PANEL]; } panel_q4_1;
typedef struct panel_q5_0 { uint16_t d[PANEL]; group_32 codes; } panel_q5_0;
typedef struct panel_q5_1 { uint16_t d[PANEL], m[PANEL]; group_32 codes; } panel_q5_1;
typedef struct panel_k_head {
    uint16_t d[PANEL], dmin[PANEL];
    uint8_t mins[K_GROUPS / 2][2 * PANEL]; /* those of two groups side by side */
} panel_k_head;
typedef struct group_q4_k { uint8_t scales[PANEL], lo[4][4 * PANEL]; } group_q4_k;
typedef struct group_q5_k { group_q4_k low; uint8_t hi[4 * PANEL]; } group_q5_k; /* bit t: of word t */
typedef struct panel_q4_k { panel_k_head head; group_q4_k groups[K_GROUPS]; } panel_q4_k;
typedef struct panel_q5_k { panel_k_head head; group_q5_k groups[K_GROUPS]; } panel_q5_k;
typedef struct group_q6_k {
    int8_t scales[2][PANEL]; /* of 16 numbers each */
    uint8_t lo[4][4 * PANEL];
    uint8_t hi[2][4 * PANEL]; /* [t & 1], bits t - (t & 1) and the next: of word t */
} group_q6_k;
typedef struct panel_q6_k { uint16_t d[PANEL]; group_q6_k groups[K_GROUPS]; } panel_q6_k;
typedef struct panel_f16 { uint16_t x[PANEL]; } panel_f16; /* one number of each row */

/* One block of an input row: its codes as words; a sum starts at `offset`, as the codes of weights are unsigned. Of
 * weights with a least value it is the sum of the codes, which that is multiplied with. */
typedef struct input_32 { int32_t words[8]; int32_t offset; float d; } input_32;
typedef struct input_256 {
    int32_t words[64];
    int32_t offset[16]; /* of each 16 numbers: Q6_K */
    int32_t sums[4];    /* sums of the codes of groups, two int16 in each: Q4_K, Q5_K */
    float d;
} input_256;

/* out [rows, PANEL], rows `out_stride` floats apart, is set to (`first`) or increased by inputs [rows, `stride` blocks]
 * times `blocks` blocks of a panel, at most a chunk; rows is 1..panel_set.tile. */
typedef void (*panel_tile)(float *out, size_t out_stride, bool first, int rows, const void *panel, const void *inputs,
                           size_t blocks, size_t stride);

typedef struct panel_set {
    int tile; /* most input rows of a call */
    /* makes up for the 128 added to Q8_0's codes: -128, or 0 where the sign is restored before multiplying */
    int32_t offset_q8_0;
    panel_tile f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k;
    void (*halves)(float *out, const uint8_t *in, size_t n); /* float16 to float32 */
    /* out [n, m], m is 1..16 and n is 1..ROWS_TOGETHER: rows b [n, k] times rows a [m, k], float16, k a multiple of
     * 16; strides are in numbers */
    void (*rows)(float *out, size_t out_stride, const uint16_t *a, size_t a_stride, size_t m, const uint16_t *b,
                 size_t b_stride, size_t n, size_t k);
} panel_set;

/* A type of weights. */
typedef struct panel_kind {
    int32_t type, inputs; /* ggml_type */
    /* of a block: its numbers; its bytes in the file, in an input row, in a panel */
    size_t numbers, bytes, input_bytes, panel;
    size_t prepared; /* bytes of a prepared input block */
    /* blocks multiplied with all panels before the next ones: prepared inputs stay in the L1 cache */
    size_t chunk;
} panel_kind;

const panel_kind *rs_panel_kind(int32_t type); /* NULL for a type that cannot be packed */
bool rs_panel_set(panel_set *set);              /* the best set this processor has; false if none */

/* Packs `blocks` blocks of up to 16 rows of a matrix, rows `row_bytes` apart, into a panel. */
void rs_panel_pack(const panel_kind *k, uint8_t *panel, const uint8_t *weights, size_t rows, size_t row_bytes,
                   size_t blocks);

/* One row of inputs as ggml quantizes it -> out [blocks] as a tile reads it. */
void rs_panel_prepare(const panel_kind *k, const panel_set *set, void *out, const uint8_t *in, size_t blocks);

/* Prepared input rows [rows, blocks] times a chunk of a panel with `columns` rows -> out [rows, columns], rows
 * `out_stride` floats apart: set by the `first` chunk, increased by the others. */
void rs_panel_multiply(const panel_set *set, const panel_kind *k, float *out, size_t out_stride, const uint8_t *panel,
                       size_t columns, const uint8_t *prepared, size_t rows, size_t blocks, bool first);

/* Part `part` of `parts` of out [n, m] = rows b [n, k] times rows a [m, k], float16, for one thread of several. */
void rs_rows_multiply(const panel_set *set, float *out, size_t out_stride, const uint16_t *a, size_t a_stride, size_t m,
                      const uint16_t *b, size_t b_stride, size_t n, size_t k, size_t part, size_t parts);

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define PANELS_X86
bool rs_packed_avx2(panel_set *set); /* false if this processor lacks the instructions */
bool rs_packed_avx512(panel_set *set);
#endif

#endif
