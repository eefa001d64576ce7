/* panels.c: refspec/panels.py, and how llama.cpp comes to multiply with it.
 *
 * llama.cpp's processor backend hands every product of a matrix with rows to `llamafile_sgemm`, a function of a shared library, before it
 * multiplies itself. Linux resolves that name to the first library that offers it, so where this one is loaded first (refspec/engine/panels.py)
 * the products of matrices that were announced here are computed here, on llama.cpp's own threads, and all others by the function of that name
 * in llama.cpp. A panel is laid out when it is first needed, by the thread that needs it.
 *
 * Unlike the rest of this library it keeps memory of its own: the panels, and a thread's input rows. Any number of threads may multiply at
 * once; a matrix is taken back (rs_panels_forget) by who knows that nobody multiplies with it.
 */
#define _GNU_SOURCE
#include "panels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 64, INPUT_BYTES = 1 << 18 }; /* models at once; what a thread prepares of inputs at once, so that it stays in its cache */

/* ---- the types ---------------------------------------------------------------------------------------------------- */

typedef struct kind {
    int32_t type, inputs;                       /* ggml_type */
    size_t numbers, bytes, input_bytes, panel;  /* of a block: its numbers, bytes in the file and of an input row, bytes of 16 rows' */
    size_t prepared;                            /* bytes of an input's block as tiles take it */
} kind;

static const kind KINDS[] = {
    {TYPE_F16, TYPE_F16, 1, 2, 2, sizeof(panel_f16), sizeof(float)},
    {TYPE_Q4_0, TYPE_Q8_0, BLOCK, 18, 34, sizeof(panel_q4_0), sizeof(input_32)},
    {TYPE_Q8_0, TYPE_Q8_0, BLOCK, 34, 34, sizeof(panel_q8_0), sizeof(input_32)},
    {TYPE_Q4_K, TYPE_Q8_K, K_BLOCK, 144, 292, sizeof(panel_q4_k), sizeof(input_256)},
    {TYPE_Q5_K, TYPE_Q8_K, K_BLOCK, 176, 292, sizeof(panel_q5_k), sizeof(input_256)},
    {TYPE_Q6_K, TYPE_Q8_K, K_BLOCK, 210, 292, sizeof(panel_q6_k), sizeof(input_256)},
};

static const kind *kind_of(int32_t type) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (KINDS[i].type == type) return &KINDS[i];
    return NULL;
}

static uint16_t read16(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static float half(uint16_t bits) { /* IEEE 754 binary16, every value exactly */
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

/* One block of a row: value = d * scale[g] * (codes - bias) - dmin * min[g] for the numbers of group g. */
typedef struct block {
    uint16_t d, dmin;
    uint8_t codes[K_BLOCK];
    int16_t scales[16], mins[8]; /* K types: of 16 numbers in Q6_K, of 32 in the others */
} block;

static void read_block(const kind *k, const uint8_t *p, block *out) {
    switch (k->type) {
    case TYPE_Q8_0:
        out->d = read16(p);
        for (int i = 0; i < BLOCK; i++) out->codes[i] = p[2 + i] ^ 0x80;
        break;
    case TYPE_Q4_0:
        out->d = read16(p);
        for (int i = 0; i < 16; i++) {
            out->codes[i] = p[2 + i] & 15;
            out->codes[16 + i] = p[2 + i] >> 4;
        }
        break;
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

/* ---- panels ------------------------------------------------------------------------------------------------------- */

/* The words of 32 codes of row i: low halves of bytes. */
static void put_low(uint8_t lo[4][4 * PANEL], int i, const uint8_t *codes) {
    for (int t = 0; t < 4; t++)
        for (int e = 0; e < 4; e++) lo[t][4 * i + e] = (uint8_t)((codes[4 * t + e] & 15) | codes[16 + 4 * t + e] << 4);
}

static void put_block(const kind *k, uint8_t *panel, int i, const block *b) {
    switch (k->type) {
    case TYPE_Q8_0: {
        panel_q8_0 *p = (void *)panel;
        p->d[i] = b->d;
        for (int t = 0; t < 8; t++) memcpy(p->codes[t] + 4 * i, b->codes + 4 * t, 4);
        break;
    }
    case TYPE_Q4_0: {
        panel_q4_0 *p = (void *)panel;
        p->d[i] = b->d;
        put_low(p->lo, i, b->codes);
        break;
    }
    case TYPE_Q4_K:
    case TYPE_Q5_K: {
        panel_q4_k *p = (void *)panel; /* a panel_q5_k begins with one */
        p->d[i] = b->d;
        p->dmin[i] = b->dmin;
        for (int g = 0; g < K_GROUPS; g++) {
            const uint8_t *codes = b->codes + BLOCK * g;
            p->scales[g][i] = (uint8_t)b->scales[g];
            p->mins[g / 2][2 * i + g % 2] = (uint8_t)b->mins[g];
            put_low(p->lo[g], i, codes);
            if (k->type == TYPE_Q5_K)
                for (int e = 0; e < 4; e++) {
                    unsigned bits = 0;
                    for (int t = 0; t < 8; t++) bits |= (unsigned)(codes[4 * t + e] >> 4) << t;
                    ((panel_q5_k *)panel)->hi[g][4 * i + e] = (uint8_t)bits;
                }
        }
        break;
    }
    default: { /* TYPE_Q6_K */
        panel_q6_k *p = (void *)panel;
        p->d[i] = b->d;
        for (int h = 0; h < 16; h++) p->scales[h][i] = (int8_t)b->scales[h];
        for (int g = 0; g < K_GROUPS; g++) {
            const uint8_t *codes = b->codes + BLOCK * g;
            put_low(p->lo[g], i, codes);
            for (int odd = 0; odd < 2; odd++)
                for (int e = 0; e < 4; e++) {
                    unsigned bits = 0;
                    for (int s = 0; s < 4; s++) bits |= (unsigned)(codes[4 * (2 * s + odd) + e] >> 4) << 2 * s;
                    p->hi[g][odd][4 * i + e] = (uint8_t)bits;
                }
        }
    }
    }
}

/* 16 rows of a matrix, `rows` of them there, `row_bytes` apart, as one panel. */
static void lay_out(const kind *k, uint8_t *panel, const uint8_t *weights, size_t rows, size_t row_bytes, size_t blocks) {
    if (rows < PANEL) memset(panel, 0, blocks * k->panel);
    block b = {0};
    for (size_t at = 0; at < blocks; at++)
        for (size_t i = 0; i < rows; i++) {
            const uint8_t *from = weights + i * row_bytes + at * k->bytes;
            if (k->type == TYPE_F16) {
                memcpy(panel + at * k->panel + 2 * i, from, 2);
                continue;
            }
            read_block(k, from, &b);
            put_block(k, panel + at * k->panel, (int)i, &b);
        }
}

/* ---- input rows --------------------------------------------------------------------------------------------------- */

static void prepare_32(const kind *k, const panel_set *set, input_32 *out, const uint8_t *in, size_t blocks) {
    const int32_t bias = k->type == TYPE_Q4_0 ? -8 : set->offset_q8_0;
    for (size_t b = 0; b < blocks; b++, in += k->input_bytes) {
        int32_t sum = 0;
        for (int i = 0; i < BLOCK; i++) sum += (int8_t)in[2 + i];
        memcpy(out[b].words, in + 2, BLOCK);
        out[b].offset = bias * sum;
        out[b].d = half(read16(in));
    }
}

static void prepare_256(input_256 *out, const uint8_t *in, size_t blocks) { /* block_q8_K: float d, int8 [256], int16 sums of 16 */
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

static void prepare(const kind *k, const panel_set *set, void *out, const uint8_t *in, size_t blocks) {
    if (k->inputs == TYPE_F16)
        set->halves(out, in, blocks);
    else if (k->inputs == TYPE_Q8_0) prepare_32(k, set, out, in, blocks);
    else prepare_256(out, in, blocks);
}

/* ---- products ----------------------------------------------------------------------------------------------------- */

/* One number, straight from the file's rows: what every other way has to give, and what is left when there is no memory. */
static float one(const kind *k, const uint8_t *weights, const uint8_t *in, size_t blocks) {
    float total = 0, odd = 0;
    if (k->type == TYPE_F16) {
        for (size_t i = 0; i < blocks; i++) *(i % 2 ? &odd : &total) += half(read16(weights + 2 * i)) * half(read16(in + 2 * i));
        return total + odd;
    }
    const int k_type = k->numbers == K_BLOCK, bias = k->type == TYPE_Q8_0 ? 128 : k->type == TYPE_Q4_0 ? 8 : k->type == TYPE_Q6_K ? 32 : 0;
    const size_t each = k->type == TYPE_Q6_K ? 16 : BLOCK;
    for (size_t at = 0; at < blocks; at++, weights += k->bytes, in += k->input_bytes) {
        block b;
        float d;
        int32_t all = 0, mins = 0;
        read_block(k, weights, &b);
        if (k_type) memcpy(&d, in, 4);
        else d = half(read16(in));
        const int8_t *codes = (const int8_t *)(in + (k_type ? 4 : 2));
        for (size_t g = 0; g < k->numbers / each; g++) {
            int32_t sum = 0, inputs = 0;
            for (size_t i = g * each; i < (g + 1) * each; i++) {
                sum += (b.codes[i] - bias) * codes[i];
                inputs += codes[i];
            }
            all += k_type ? b.scales[g] * sum : sum;
            if (k_type && each == BLOCK) mins += b.mins[g] * inputs;
        }
        total += half(b.d) * d * (float)all;
        if (k_type && each == BLOCK) total -= half(b.dmin) * d * (float)mins;
    }
    return total;
}

static panel_tile tile_of(const panel_set *set, int32_t type) {
    switch (type) {
    case TYPE_F16: return set->f16;
    case TYPE_Q4_0: return set->q4_0;
    case TYPE_Q8_0: return set->q8_0;
    case TYPE_Q4_K: return set->q4_k;
    case TYPE_Q5_K: return set->q5_k;
    default: return set->q6_k;
    }
}

static const panel_set *set_named(const char *name) {
#ifdef PANELS_X86
    if (strcmp(name, "avx2") == 0) return panels_avx2();
    if (strcmp(name, "avx512") == 0) return panels_avx512();
#else
    (void)name;
#endif
    return NULL;
}

static const panel_set *best(void) {
    const panel_set *set = set_named("avx512");
    return set ? set : set_named("avx2");
}

const char *rs_panels_set(void) { return set_named("avx512") ? "avx512" : set_named("avx2") ? "avx2" : ""; }

bool rs_panels_takes(int32_t type) { return kind_of(type) != NULL; }

enum { MISSING, BEGUN, THERE }; /* of a panel */

typedef struct matrix {
    const uint8_t *weights; /* the address llama.cpp knows it by */
    const kind *kind;
    size_t rows, blocks;
    uint8_t *panels;
    atomic_uchar *state; /* of each panel */
} matrix;

static uint8_t *panel_at(matrix *m, size_t p) { return m->panels + p * m->blocks * m->kind->panel; }

/* Panel p, laid out now if nobody has; NULL while another thread is at it. */
static const uint8_t *panel_of(matrix *m, size_t p) {
    unsigned char state = MISSING;
    if (!atomic_compare_exchange_strong(&m->state[p], &state, BEGUN)) return state == THERE ? panel_at(m, p) : NULL;
    const size_t row_bytes = m->blocks * m->kind->bytes, left = m->rows - p * PANEL;
    lay_out(m->kind, panel_at(m, p), m->weights + p * PANEL * row_bytes, left < PANEL ? left : PANEL, row_bytes, m->blocks);
    atomic_store(&m->state[p], THERE);
    return panel_at(m, p);
}

/* Panels first..last-1 times n input rows, `input_stride` bytes apart -> out, rows `out_stride` floats apart. */
static void multiply(const panel_set *set, matrix *m, size_t first, size_t last, const uint8_t *inputs, size_t n, size_t input_stride, float *out,
                     size_t out_stride) {
    static _Thread_local uint8_t *prepared;
    static _Thread_local size_t room;
    const kind *k = m->kind;
    const size_t row = m->blocks * k->prepared, row_bytes = m->blocks * k->bytes;
    size_t together = INPUT_BYTES / row / TILE * TILE;
    if (together < TILE) together = TILE;
    if (together > n) together = n;
    if (room < together * row) {
        free(prepared);
        prepared = malloc(together * row);
        room = prepared ? together * row : 0;
    }
    const panel_tile tile = tile_of(set, k->type);
    for (size_t at = 0; at < n; at += together) {
        const size_t here = n - at < together ? n - at : together;
        if (room)
            for (size_t r = 0; r < here; r++) prepare(k, set, prepared + r * row, inputs + (at + r) * input_stride, m->blocks);
        for (size_t p = first; p < last; p++) {
            const size_t column = p * PANEL, columns = m->rows - column < PANEL ? m->rows - column : PANEL;
            const uint8_t *panel = room ? panel_of(m, p) : NULL;
            for (size_t r = 0; r < here;) {
                float *to = out + (at + r) * out_stride + column;
                if (!panel) {
                    for (size_t j = 0; j < columns; j++) to[j] = one(k, m->weights + (column + j) * row_bytes, inputs + (at + r) * input_stride, m->blocks);
                    r++;
                    continue;
                }
                float result[TILE * PANEL];
                const size_t rows = here - r < (size_t)set->tile ? here - r : (size_t)set->tile;
                tile(result, (int)rows, panel, prepared + r * row, m->blocks, m->blocks);
                for (size_t i = 0; i < rows; i++) memcpy(to + i * out_stride, result + i * PANEL, columns * sizeof *to);
                r += rows;
            }
        }
    }
}

static size_t panels_in(const matrix *m) { return (m->rows + PANEL - 1) / PANEL; }

/* Bytes of its panels, whole cache lines. */
static size_t room_for(const matrix *m) { return (panels_in(m) * m->blocks * m->kind->panel + 63) / 64 * 64; }

int32_t rs_panels_product(float *out, const char *set_name, int32_t type, const uint8_t *weights, const uint8_t *inputs, size_t n, size_t rows,
                          size_t blocks) {
    const kind *k = kind_of(type);
    const panel_set *set = set_named(set_name);
    if (!k || (!set && *set_name)) return RS_BAD_CONFIG;
    if (!set) {
        for (size_t r = 0; r < n; r++)
            for (size_t j = 0; j < rows; j++) out[r * rows + j] = one(k, weights + j * blocks * k->bytes, inputs + r * blocks * k->input_bytes, blocks);
        return RS_OK;
    }
    matrix m = {weights, k, rows, blocks, NULL, NULL};
    m.panels = malloc(panels_in(&m) * blocks * k->panel);
    m.state = calloc(panels_in(&m), sizeof *m.state);
    int32_t status = m.panels && m.state ? RS_OK : RS_ENGINE;
    if (status == RS_OK) multiply(set, &m, 0, panels_in(&m), inputs, n, blocks * k->input_bytes, out, rows);
    free(m.panels);
    free(m.state);
    return status;
}

/* ---- matrices llama.cpp multiplies with --------------------------------------------------------------------------- */

typedef struct slot {
    _Atomic(uintptr_t) low, high; /* addresses of its weights; 0: free. Read by every product, so the rest is only touched within them. */
    atomic_bool taken, on;
    atomic_llong products;
    matrix *matrices; /* sorted by address */
    size_t count, bytes;
    uint8_t *memory;
} slot;

static slot slots[SLOTS];

#ifdef PANELS_X86
#include <sys/mman.h>

int32_t rs_panels_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns, size_t count) {
    slot *s = NULL;
    for (int i = 0; i < SLOTS && !s; i++) {
        bool taken = false;
        if (atomic_compare_exchange_strong(&slots[i].taken, &taken, true)) s = &slots[i];
    }
    if (!s || !count || !best()) {
        if (s) atomic_store(&s->taken, false);
        return -1;
    }
    s->matrices = calloc(count, sizeof *s->matrices);
    size_t bytes = 0, panels = 0;
    for (size_t i = 0; s->matrices && i < count; i++) {
        matrix *m = &s->matrices[i];
        *m = (matrix){(const uint8_t *)weights[i], kind_of(types[i]), rows[i], columns[i] / kind_of(types[i])->numbers, NULL, NULL};
        bytes += room_for(m);
        panels += panels_in(m);
    }
    s->bytes = bytes + panels; /* pages are given only when a panel is laid out */
    void *memory = s->matrices ? mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;
    if (memory == MAP_FAILED) {
        free(s->matrices);
        atomic_store(&s->taken, false);
        return -1;
    }
    madvise(memory, s->bytes, MADV_HUGEPAGE);
    s->memory = memory;
    s->count = count;
    uint8_t *at = s->memory;
    atomic_uchar *state = (atomic_uchar *)(s->memory + bytes);
    for (size_t i = 0; i < count; i++) {
        matrix *m = &s->matrices[i];
        m->panels = at;
        m->state = state;
        at += room_for(m);
        state += panels_in(m);
    }
    atomic_store(&s->products, 0);
    atomic_store(&s->on, true);
    atomic_store(&s->high, weights[count - 1] + 1);
    atomic_store(&s->low, weights[0]);
    return (int32_t)(s - slots);
}

void rs_panels_forget(int32_t index) {
    slot *s = &slots[index];
    atomic_store(&s->low, 0);
    atomic_store(&s->high, 0);
    munmap(s->memory, s->bytes);
    free(s->matrices);
    s->matrices = NULL;
    atomic_store(&s->taken, false);
}

typedef bool (*sgemm)(const void *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *, int64_t, int, int, int);
static _Atomic(sgemm) others; /* llama.cpp's own */

typedef struct compute_params { int ith, nth; } compute_params; /* struct ggml_compute_params begins so: this thread, of how many */

static matrix *find(const void *weights) {
    const uintptr_t at = (uintptr_t)weights;
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &slots[i];
        if (at < atomic_load_explicit(&s->low, memory_order_acquire) || at >= atomic_load_explicit(&s->high, memory_order_acquire)) continue;
        if (!atomic_load_explicit(&s->on, memory_order_relaxed)) return NULL;
        size_t low = 0, high = s->count;
        while (low + 1 < high) {
            size_t middle = (low + high) / 2;
            if ((uintptr_t)s->matrices[middle].weights <= at) low = middle;
            else high = middle;
        }
        if ((uintptr_t)s->matrices[low].weights != at) return NULL;
        atomic_fetch_add_explicit(&s->products, 1, memory_order_relaxed);
        return &s->matrices[low];
    }
    return NULL;
}

/* llama.cpp's name and arguments: out [n rows of m, ldc apart] = rows of B times rows of A; k, lda and ldb count blocks of their types. Whether it
 * is done here must be the same for every thread of one product, so it depends on nothing that another thread changes meanwhile. */
__attribute__((visibility("default"))) bool llamafile_sgemm(const void *params, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                                                            const void *b, int64_t ldb, void *c, int64_t ldc, int a_type, int b_type, int c_type);
bool llamafile_sgemm(const void *params, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb, void *c, int64_t ldc,
                     int a_type, int b_type, int c_type) {
    matrix *found = find(a);
    if (!found || found->kind->type != a_type || (int64_t)found->rows != m || (int64_t)found->blocks != k || lda != k || c_type != TYPE_F32) {
        sgemm other = atomic_load_explicit(&others, memory_order_relaxed);
        return other && other(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type); /* false: llama.cpp multiplies otherwise */
    }
    if (found->kind->inputs != b_type) return false; /* it converts them, and asks again */
    const compute_params *mine = params;
    const size_t all = panels_in(found), each = (all + (size_t)mine->nth - 1) / (size_t)mine->nth;
    const size_t first = (size_t)mine->ith * each < all ? (size_t)mine->ith * each : all, last = first + each < all ? first + each : all;
    if (first < last)
        multiply(best(), found, first, last, b, (size_t)n, (size_t)ldb * found->kind->input_bytes, c, (size_t)ldc);
    return true;
}

void rs_panels_others(uintptr_t function) { atomic_store(&others, (sgemm)function); }

uintptr_t rs_panels_entry(void) { return (uintptr_t)llamafile_sgemm; }
#else
int32_t rs_panels_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns, size_t count) {
    (void)weights, (void)types, (void)rows, (void)columns, (void)count;
    return -1;
}
void rs_panels_forget(int32_t index) { (void)index; }
void rs_panels_others(uintptr_t function) { (void)function; }
uintptr_t rs_panels_entry(void) { return 0; }
#endif

void rs_panels_switch(int32_t index, bool on) { atomic_store(&slots[index].on, on); }

int64_t rs_panels_products(int32_t index) { return (int64_t)atomic_load(&slots[index].products); }
