/* packed_matmul.c: refspec/reference/packed_matmul.py in C: panels of weights, inputs prepared, multiplication.
 * matmul_hook.c makes llama.cpp multiply with it. */
#include "packed_matmul.h"

#include <string.h>

/* ---- the types --------------------------------------------------------------------------------------------------- */

static const panel_kind KINDS[] = {
    {TYPE_F16, TYPE_F16, 1, 2, 2, sizeof(panel_f16), sizeof(float), 512},
    {TYPE_Q4_0, TYPE_Q8_0, BLOCK, 18, 34, sizeof(panel_q4_0), sizeof(input_32), 32},
    {TYPE_Q4_1, TYPE_Q8_1, BLOCK, 20, 36, sizeof(panel_q4_1), sizeof(input_32), 32},
    {TYPE_Q5_0, TYPE_Q8_0, BLOCK, 22, 34, sizeof(panel_q5_0), sizeof(input_32), 32},
    {TYPE_Q5_1, TYPE_Q8_1, BLOCK, 24, 36, sizeof(panel_q5_1), sizeof(input_32), 32},
    {TYPE_Q8_0, TYPE_Q8_0, BLOCK, 34, 34, sizeof(panel_q8_0), sizeof(input_32), 32},
    {TYPE_Q4_K, TYPE_Q8_K, K_BLOCK, 144, 292, sizeof(panel_q4_k), sizeof(input_256), 4},
    {TYPE_Q5_K, TYPE_Q8_K, K_BLOCK, 176, 292, sizeof(panel_q5_k), sizeof(input_256), 4},
    {TYPE_Q6_K, TYPE_Q8_K, K_BLOCK, 210, 292, sizeof(panel_q6_k), sizeof(input_256), 4},
};

_Static_assert(512 * sizeof(float) <= PREPARED, "a chunk of float16 fits");
_Static_assert(32 * sizeof(input_32) <= PREPARED && 4 * sizeof(input_256) <= PREPARED, "a chunk of the others fits");

const panel_kind *rs_panel_kind(int32_t type) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (KINDS[i].type == type) return &KINDS[i];
    return NULL;
}

RS_INLINE uint16_t read16(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

RS_INLINE float half(uint16_t bits) { /* IEEE 754 binary16, every value exactly */
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 1023u, out;
    if (exponent == 31) out = sign | 0x7f800000u | fraction << 13;
    else if (exponent) out = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        float tiny = (float)fraction * 0x1p-24f;
        memcpy(&out, &tiny, sizeof out);
        out |= sign;
    }
    float x;
    memcpy(&x, &out, sizeof x);
    return x;
}

/* Whether the codes of a type with blocks of 32 have five bits. */
RS_INLINE bool has_fifth(const panel_kind *k) { return k->type == TYPE_Q5_0 || k->type == TYPE_Q5_1; }

/* One block of a row: value = d * scale[g] * (codes - bias) - dmin * min[g] for the numbers of group g; of Q4_1 and
 * Q5_1 d * codes + dmin. */
typedef struct block {
    uint16_t d, dmin;
    uint8_t codes[K_BLOCK];
    int16_t scales[16], mins[8]; /* K types: of 16 numbers in Q6_K, of 32 in the others */
} block;

RS_INLINE void read_block(const panel_kind *k, const uint8_t *p, block *out) {
    switch (k->type) {
    case TYPE_Q8_0:
        out->d = read16(p);
        for (int i = 0; i < BLOCK; i++) out->codes[i] = p[2 + i] ^ 0x80;
        break;
    case TYPE_Q4_0:
    case TYPE_Q4_1:
    case TYPE_Q5_0:
    case TYPE_Q5_1: {
        const uint8_t *lo = p + k->bytes - 16, *hi = lo - 4;
        out->d = read16(p);
        if (k->inputs == TYPE_Q8_1) out->dmin = read16(p + 2);
        for (int i = 0; i < 16; i++) {
            out->codes[i] = lo[i] & 15;
            out->codes[16 + i] = lo[i] >> 4;
        }
        if (has_fifth(k))
            for (int i = 0; i < BLOCK; i++) out->codes[i] |= (hi[i / 8] >> i % 8 & 1) << 4;
        break;
    }
    case TYPE_Q4_K:
    case TYPE_Q5_K: {
        const uint8_t *s = p + 4, *hi = p + 16, *lo = k->type == TYPE_Q5_K ? p + 48 : p + 16;
        out->d = read16(p);
        out->dmin = read16(p + 2);
        for (int g = 0; g < K_GROUPS; g++) {
            out->scales[g] = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
            out->mins[g] = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
            for (int i = 0; i < BLOCK; i++) {
                uint8_t byte = lo[BLOCK * (g / 2) + i];
                out->codes[BLOCK * g + i] = g % 2 ? byte >> 4 : byte & 15;
            }
            if (k->type == TYPE_Q5_K)
                for (int i = 0; i < BLOCK; i++) out->codes[BLOCK * g + i] |= (hi[i] >> g & 1) << 4;
        }
        break;
    }
    default: /* TYPE_Q6_K */
        for (int h = 0; h < 2; h++) /* halves of 128 numbers */
            for (int i = 0; i < BLOCK; i++) {
                const uint8_t *lo = p + 64 * h + i, high = p[128 + 32 * h + i];
                uint8_t *at = out->codes + 128 * h + i;
                at[0] = (lo[0] & 15) | (high & 3) << 4;
                at[32] = (lo[32] & 15) | (high >> 2 & 3) << 4;
                at[64] = lo[0] >> 4 | (high >> 4 & 3) << 4;
                at[96] = lo[32] >> 4 | (high >> 6) << 4;
            }
        for (int i = 0; i < 16; i++) out->scales[i] = (int8_t)p[192 + i];
        out->d = read16(p + 208);
    }
}

/* ---- panels ------------------------------------------------------------------------------------------------------ */

/* The low four bits of 32 codes of row i, as `lo`. */
RS_INLINE void put_low(uint8_t lo[4][4 * PANEL], int i, const uint8_t *codes) {
    for (int t = 0; t < 4; t++)
        for (int e = 0; e < 4; e++) lo[t][4 * i + e] = (uint8_t)((codes[4 * t + e] & 15) | codes[16 + 4 * t + e] << 4);
}

/* Their fifth bits, as `hi`: bit t of a byte belongs to word t. */
RS_INLINE void put_fifth(uint8_t hi[4 * PANEL], int i, const uint8_t *codes) {
    for (int e = 0; e < 4; e++) {
        unsigned bits = 0;
        for (int t = 0; t < 8; t++) bits |= (unsigned)(codes[4 * t + e] >> 4) << t;
        hi[4 * i + e] = (uint8_t)bits;
    }
}

RS_INLINE void put_block(const panel_kind *k, uint8_t *panel, int i, const block *b) {
    switch (k->type) {
    case TYPE_Q8_0: {
        panel_q8_0 *p = (void *)panel;
        p->d[i] = b->d;
        for (int t = 0; t < 8; t++) memcpy(p->codes[t] + 4 * i, b->codes + 4 * t, 4);
        break;
    }
    case TYPE_Q4_0:
    case TYPE_Q4_1:
    case TYPE_Q5_0:
    case TYPE_Q5_1: {
        uint16_t *head = (void *)panel; /* d, and the least values where there are some */
        const bool least = k->inputs == TYPE_Q8_1;
        head[i] = b->d;
        if (least) head[PANEL + i] = b->dmin;
        group_32 *p = (void *)(head + PANEL * (1 + least)); /* Q4_0 and Q4_1 end before its `hi` */
        put_low(p->lo, i, b->codes);
        if (has_fifth(k)) put_fifth(p->hi, i, b->codes);
        break;
    }
    case TYPE_Q4_K:
    case TYPE_Q5_K: {
        const size_t size = k->type == TYPE_Q5_K ? sizeof(group_q5_k) : sizeof(group_q4_k);
        panel_k_head *head = (void *)panel;
        head->d[i] = b->d;
        head->dmin[i] = b->dmin;
        for (int g = 0; g < K_GROUPS; g++) {
            const uint8_t *codes = b->codes + BLOCK * g;
            group_q4_k *p = (void *)(panel + sizeof *head + g * size); /* a group_q5_k begins with one */
            p->scales[i] = (uint8_t)b->scales[g];
            head->mins[g / 2][2 * i + g % 2] = (uint8_t)b->mins[g];
            put_low(p->lo, i, codes);
            if (k->type == TYPE_Q5_K) put_fifth(((group_q5_k *)p)->hi, i, codes);
        }
        break;
    }
    default: { /* TYPE_Q6_K */
        panel_q6_k *p = (void *)panel;
        p->d[i] = b->d;
        for (int g = 0; g < K_GROUPS; g++) {
            const uint8_t *codes = b->codes + BLOCK * g;
            for (int h = 0; h < 2; h++) p->groups[g].scales[h][i] = (int8_t)b->scales[2 * g + h];
            put_low(p->groups[g].lo, i, codes);
            for (int odd = 0; odd < 2; odd++)
                for (int e = 0; e < 4; e++) {
                    unsigned bits = 0;
                    for (int s = 0; s < 4; s++) bits |= (unsigned)(codes[4 * (2 * s + odd) + e] >> 4) << 2 * s;
                    p->groups[g].hi[odd][4 * i + e] = (uint8_t)bits;
                }
        }
    }
    }
}

RS_FAST void rs_panel_pack(const panel_kind *k, uint8_t *panel, const uint8_t *weights, size_t rows, size_t row_bytes,
                           size_t blocks) {
    if (rows < PANEL) memset(panel, 0, blocks * k->panel);
    if (k->type == TYPE_F16) {
        uint16_t *to = (uint16_t *)(void *)panel;
        for (size_t i = 0; i < rows; i++)
            for (size_t at = 0; at < blocks; at++) to[at * PANEL + i] = read16(weights + i * row_bytes + 2 * at);
        return;
    }
    block b = {0};
    for (size_t at = 0; at < blocks; at++)
        for (size_t i = 0; i < rows; i++) {
            read_block(k, weights + i * row_bytes + at * k->bytes, &b);
            put_block(k, panel + at * k->panel, (int)i, &b);
        }
}

/* ---- input rows -------------------------------------------------------------------------------------------------- */

RS_INLINE void prepare_32(const panel_kind *k, const panel_set *set, input_32 *out, const uint8_t *in, size_t blocks) {
    const size_t at = k->input_bytes - BLOCK; /* Q8_1 has a rounded sum there, which is not used */
    const int32_t bias = k->type == TYPE_Q8_0   ? set->offset_q8_0
                         : k->type == TYPE_Q4_0 ? -8
                         : k->type == TYPE_Q5_0 ? -16
                                                : 1; /* the sum itself */
    for (size_t b = 0; b < blocks; b++, in += k->input_bytes) {
        int32_t sum = 0;
        for (int i = 0; i < BLOCK; i++) sum += (int8_t)in[at + (size_t)i];
        memcpy(out[b].words, in + at, BLOCK);
        out[b].offset = bias * sum;
        out[b].d = half(read16(in));
    }
}

/* block_q8_K: float d, int8 [256], int16 sums of 16 */
RS_INLINE void prepare_256(input_256 *out, const uint8_t *in, size_t blocks) {
    for (size_t b = 0; b < blocks; b++, in += 4 + K_BLOCK + 32) {
        int16_t sums[16], pairs[8];
        memcpy(&out[b].d, in, 4);
        memcpy(out[b].words, in + 4, K_BLOCK);
        memcpy(sums, in + 4 + K_BLOCK, sizeof sums);
        for (int i = 0; i < 16; i++) out[b].offset[i] = -32 * sums[i];
        for (int i = 0; i < 8; i++) pairs[i] = (int16_t)(sums[2 * i] + sums[2 * i + 1]);
        memcpy(out[b].sums, pairs, sizeof pairs);
    }
}

RS_FAST void rs_panel_prepare(const panel_kind *k, const panel_set *set, void *out, const uint8_t *in, size_t blocks) {
    if (k->inputs == TYPE_F16) set->halves(out, in, blocks);
    else if (k->inputs != TYPE_Q8_K) prepare_32(k, set, out, in, blocks);
    else prepare_256(out, in, blocks);
}

/* ---- multiplication ---------------------------------------------------------------------------------------------- */

static panel_tile tile_of(const panel_set *set, int32_t type) {
    switch (type) {
    case TYPE_F16: return set->f16;
    case TYPE_Q4_0: return set->q4_0;
    case TYPE_Q4_1: return set->q4_1;
    case TYPE_Q5_0: return set->q5_0;
    case TYPE_Q5_1: return set->q5_1;
    case TYPE_Q8_0: return set->q8_0;
    case TYPE_Q4_K: return set->q4_k;
    case TYPE_Q5_K: return set->q5_k;
    default: return set->q6_k;
    }
}

static bool set_named(panel_set *set, const char *name) {
#ifdef PANELS_X86
    if (strcmp(name, "avx2") == 0) return rs_packed_avx2(set);
    if (strcmp(name, "avx512") == 0) return rs_packed_avx512(set);
#else
    (void)name, (void)set;
#endif
    return false;
}

bool rs_panel_set(panel_set *set) { return set_named(set, "avx512") || set_named(set, "avx2"); }

const char *rs_matmul_set(void) {
    panel_set set;
    return set_named(&set, "avx512") ? "avx512" : set_named(&set, "avx2") ? "avx2" : "";
}

void rs_panel_multiply(const panel_set *set, const panel_kind *k, float *out, size_t out_stride, const uint8_t *panel,
                       size_t columns, const uint8_t *prepared, size_t rows, size_t blocks, bool first) {
    const panel_tile tile = tile_of(set, k->type);
    for (size_t r = 0, these; r < rows; r += these) {
        const uint8_t *inputs = prepared + r * blocks * k->prepared;
        float *to = out + r * out_stride;
        these = rows - r < (size_t)set->tile ? rows - r : (size_t)set->tile;
        if (columns == PANEL) {
            tile(to, out_stride, first, (int)these, panel, inputs, blocks, blocks);
            continue;
        }
        float sums[TILE * PANEL] = {0}; /* the last panel may have fewer rows than the tile writes */
        for (size_t i = 0; i < these && !first; i++)
            memcpy(sums + i * PANEL, to + i * out_stride, columns * sizeof *to);
        tile(sums, PANEL, first, (int)these, panel, inputs, blocks, blocks);
        for (size_t i = 0; i < these; i++) memcpy(to + i * out_stride, sums + i * PANEL, columns * sizeof *to);
    }
}

void rs_rows_multiply(const panel_set *set, float *out, size_t out_stride, const uint16_t *a, size_t a_stride, size_t m,
                      const uint16_t *b, size_t b_stride, size_t n, size_t k, size_t part, size_t parts) {
    const size_t high = (m + PANEL - 1) / PANEL, wide = (n + ROWS_TOGETHER - 1) / ROWS_TOGETHER, all = high * wide;
    for (size_t tile = all * part / parts; tile < all * (part + 1) / parts; tile++) { /* keys stay in the cache */
        const size_t i = tile / wide * PANEL, j = tile % wide * ROWS_TOGETHER;
        set->rows(out + j * out_stride + i, out_stride, a + i * a_stride, a_stride, m - i < PANEL ? m - i : PANEL,
                  b + j * b_stride, b_stride, n - j < ROWS_TOGETHER ? n - j : ROWS_TOGETHER, k);
    }
}

int32_t rs_matmul_rows(float *out, const char *set_name, const uint16_t *a, size_t m, const uint16_t *b, size_t n,
                       size_t k, size_t parts) {
    panel_set set;
    if (k % PANEL || !parts || !set_named(&set, set_name)) return RS_BAD_CONFIG;
    for (size_t part = 0; part < parts; part++) rs_rows_multiply(&set, out, m, a, k, m, b, k, n, k, part, parts);
    return RS_OK;
}

bool rs_matmul_takes(int32_t type) { return rs_panel_kind(type) != NULL; }

size_t rs_matmul_scratch(int32_t type, size_t n) {
    const panel_kind *k = rs_panel_kind(type);
    return k ? k->chunk * (k->panel + n * k->prepared) : 0;
}

int32_t rs_matmul(float *out, uint8_t *scratch, const char *set_name, int32_t type, const uint8_t *weights,
                  const uint8_t *inputs, size_t n, size_t rows, size_t blocks) {
    const panel_kind *k = rs_panel_kind(type);
    panel_set set;
    if (!k || !set_named(&set, set_name)) return RS_BAD_CONFIG;
    const size_t row_bytes = blocks * k->bytes, input_bytes = blocks * k->input_bytes;
    uint8_t *panel = scratch, *prepared = scratch + k->chunk * k->panel;
    for (size_t b = 0; b < blocks; b += k->chunk) {
        const size_t these = blocks - b < k->chunk ? blocks - b : k->chunk;
        for (size_t r = 0; r < n; r++) {
            const uint8_t *from = inputs + r * input_bytes + b * k->input_bytes;
            rs_panel_prepare(k, &set, prepared + r * these * k->prepared, from, these);
        }
        for (size_t at = 0; at < rows; at += PANEL) {
            const size_t columns = rows - at < PANEL ? rows - at : PANEL;
            rs_panel_pack(k, panel, weights + at * row_bytes + b * k->bytes, columns, row_bytes, these);
            rs_panel_multiply(&set, k, out + at, rows, panel, columns, prepared, n, these, b == 0);
        }
    }
    return RS_OK;
}
