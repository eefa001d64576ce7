/* matmul_hook.c: makes llama.cpp multiply with packed_matmul.c.
 *
 * llama.cpp's CPU backend offers every matrix multiplication to `llamafile_sgemm` first, and Linux resolves that name
 * to the first library that has it. Where this one is loaded first (refspec/llama/matmul_hook.py), multiplications by
 * matrices announced here are computed here, on llama.cpp's own threads; all others go to llama.cpp's function of that
 * name. A panel is packed when it is first used, by the thread that uses it.
 *
 * Unlike the other files here it keeps state: the panels, and the prepared inputs of each thread. Any number of threads
 * may multiply at once. The caller of rs_matmul_forget must know that no thread is multiplying with those matrices.
 */
#define _GNU_SOURCE
#include "packed_matmul.h"

#ifdef PANELS_X86
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORTED __attribute__((visibility("default")))

enum { SLOTS = 4096 }; /* models at once */
enum { HEAD = 256 }; /* numbers of an attention head, at most */

enum { MISSING, BEGUN, THERE }; /* of a panel */

typedef struct matrix {
    const uint8_t *weights; /* the address llama.cpp knows it by */
    const panel_kind *kind;
    size_t rows, blocks;
    uint8_t *panels;
    atomic_uchar *state; /* of each panel */
} matrix;

static size_t panels_in(const matrix *m) { return (m->rows + PANEL - 1) / PANEL; }

/* Bytes of its panels, whole cache lines. */
static size_t room_for(const matrix *m) { return (panels_in(m) * m->blocks * m->kind->panel + 63) / 64 * 64; }

/* Panel p of the chunk of `blocks` blocks that begins at block b; the panels of a chunk lie one after the other. */
static uint8_t *piece_at(matrix *m, size_t p, size_t b, size_t blocks) {
    return m->panels + (b * panels_in(m) + p * blocks) * m->kind->panel;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Blocks of the chunk that begins at block b. */
static size_t chunk_at(const matrix *m, size_t b) { return smaller(m->blocks - b, m->kind->chunk); }

/* Waits until panel p is packed, and packs it if no other thread has begun. */
static void need(matrix *m, size_t p) {
    /* a load first: a write would take the cache line from other threads, which read the states beside it */
    if (atomic_load_explicit(&m->state[p], memory_order_acquire) == THERE) return;
    unsigned char state = MISSING;
    if (atomic_compare_exchange_strong(&m->state[p], &state, BEGUN)) {
        const size_t rows = smaller(m->rows - p * PANEL, PANEL), row_bytes = m->blocks * m->kind->bytes;
        const uint8_t *weights = m->weights + p * PANEL * row_bytes;
        for (size_t b = 0; b < m->blocks; b += m->kind->chunk) {
            const size_t blocks = chunk_at(m, b);
            rs_panel_pack(m->kind, piece_at(m, p, b, blocks), weights + b * m->kind->bytes, rows, row_bytes, blocks);
        }
        atomic_store(&m->state[p], THERE);
    }
    /* another context of the same model may be packing it */
    while (atomic_load_explicit(&m->state[p], memory_order_acquire) != THERE) sched_yield();
}

/* Panels first..last-1 times n input rows, `input_stride` bytes apart -> out, rows `out_stride` floats apart. */
static void multiply(matrix *m, size_t first, size_t last, const uint8_t *inputs, size_t n, size_t input_stride,
                     float *out, size_t out_stride) {
    static _Thread_local _Alignas(64) uint8_t prepared[TOGETHER * PREPARED];
    panel_set set;
    if (!rs_panel_set(&set)) return; /* never: then nothing was announced */
    const panel_kind *k = m->kind;
    for (size_t p = first; p < last; p++) need(m, p);
    for (size_t at = 0; at < n; at += TOGETHER) {
        const size_t rows = smaller(n - at, TOGETHER);
        for (size_t b = 0; b < m->blocks; b += k->chunk) {
            const size_t blocks = chunk_at(m, b);
            for (size_t r = 0; r < rows; r++) {
                const uint8_t *from = inputs + (at + r) * input_stride + b * k->input_bytes;
                rs_panel_prepare(k, &set, prepared + r * blocks * k->prepared, from, blocks);
            }
            for (size_t p = first; p < last; p++) {
                const size_t column = p * PANEL, columns = smaller(m->rows - column, PANEL);
                float *to = out + at * out_stride + column;
                rs_panel_multiply(&set, k, to, out_stride, piece_at(m, p, b, blocks), columns, prepared, rows, blocks,
                                  b == 0);
            }
        }
    }
}

/* ---- announced matrices ------------------------------------------------------------------------------------------ */

typedef struct slot {
    _Atomic(uintptr_t) low, high; /* addresses of its weights, none if `high` is 0; every multiplication reads them */
    atomic_bool taken, on;
    matrix *matrices; /* sorted by address */
    size_t count, bytes;
    uint8_t *memory;
    _Alignas(64) atomic_llong calls; /* computed here; in a cache line of its own, because it is written */
} slot;

static slot slots[SLOTS];
static atomic_int in_use; /* no slot from here on was ever taken, so that multiplications look at few */

int32_t rs_matmul_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns,
                           size_t count) {
    slot *s = NULL;
    for (int i = 0; i < SLOTS && !s; i++) {
        bool taken = false;
        if (atomic_compare_exchange_strong(&slots[i].taken, &taken, true)) s = &slots[i];
    }
    panel_set set;
    if (!s || !count || !rs_panel_set(&set)) {
        if (s) atomic_store(&s->taken, false);
        return -1;
    }
    s->matrices = calloc(count, sizeof *s->matrices);
    size_t bytes = 0, panels = 0;
    for (size_t i = 0; s->matrices && i < count; i++) {
        matrix *m = &s->matrices[i];
        const panel_kind *kind = rs_panel_kind(types[i]);
        *m = (matrix){(const uint8_t *)weights[i], kind, rows[i], columns[i] / kind->numbers, NULL, NULL};
        bytes += room_for(m);
        panels += panels_in(m);
    }
    s->bytes = bytes + panels; /* a page is used only when a panel is packed into it */
    void *memory = MAP_FAILED;
    if (s->matrices)
        memory = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
    atomic_store(&s->calls, 0);
    atomic_store(&s->on, true);
    atomic_store(&s->low, weights[0]);
    atomic_store(&s->high, weights[count - 1] + 1);
    const int index = (int)(s - slots);
    int seen = atomic_load(&in_use);
    while (seen <= index && !atomic_compare_exchange_weak(&in_use, &seen, index + 1)) {}
    return index;
}

void rs_matmul_forget(int32_t index) {
    slot *s = &slots[index];
    atomic_store(&s->high, 0);
    munmap(s->memory, s->bytes);
    free(s->matrices);
    s->matrices = NULL;
    atomic_store(&s->taken, false);
}

typedef bool (*sgemm)(const void *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *,
                      int64_t, int, int, int);
typedef bool (*tiled)(const void *, void *);
typedef void *(*get_data)(const void *);
static _Atomic(sgemm) others; /* llama.cpp's own */
static _Atomic(tiled) others_tiled;
static _Atomic(get_data) data_of; /* ggml_get_data; NULL: it is not known how a ggml_tensor points to its operands */
static atomic_size_t matrix_at;   /* bytes from a ggml_tensor to the address of its first operand */

static atomic_bool attending; /* whether products with rows of a cache are computed here */

typedef struct compute_params { int ith, nth; } compute_params; /* ggml's, as it begins: this thread, of how many */

static matrix *find(const void *weights, slot **where) {
    const uintptr_t at = (uintptr_t)weights;
    for (int i = 0, n = atomic_load_explicit(&in_use, memory_order_acquire); i < n; i++) {
        slot *s = &slots[i];
        if (at < atomic_load_explicit(&s->low, memory_order_acquire)) continue;
        if (at >= atomic_load_explicit(&s->high, memory_order_acquire)) continue;
        if (!atomic_load_explicit(&s->on, memory_order_relaxed)) continue;
        size_t low = 0, high = s->count;
        while (low + 1 < high) {
            size_t middle = (low + high) / 2;
            if ((uintptr_t)s->matrices[middle].weights <= at) low = middle;
            else high = middle;
        }
        if ((uintptr_t)s->matrices[low].weights != at) continue; /* the buffers of models may interleave */
        *where = s;
        return &s->matrices[low];
    }
    return NULL;
}

/* llama.cpp's name and arguments: c [n rows of m, ldc apart] = rows of B times rows of A; k, lda and ldb count blocks
 * of their types. All threads of one multiplication must decide alike whether it is computed here, so that depends on
 * nothing that another thread changes meanwhile. */
EXPORTED bool llamafile_sgemm(const void *params, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                              const void *b, int64_t ldb, void *c, int64_t ldc, int a_type, int b_type, int c_type) {
    slot *where;
    matrix *found = find(a, &where);
    /* rows of a cache: those of a weight lie one after another, as do keys with a single head, which are short */
    if (!found && a_type == TYPE_F16 && (lda != k || k <= HEAD) && k % PANEL == 0 && c_type == TYPE_F32 &&
        atomic_load_explicit(&attending, memory_order_relaxed)) {
        if (b_type != TYPE_F16) return false; /* llama.cpp rounds the inputs and asks again */
        panel_set set;
        if (!rs_panel_set(&set)) return false;
        const compute_params *own = params;
        rs_rows_multiply(&set, c, (size_t)ldc, a, (size_t)lda, (size_t)m, b, (size_t)ldb, (size_t)n, (size_t)k,
                         (size_t)own->ith, (size_t)own->nth);
        return true;
    }
    if (!found || found->kind->type != a_type || (int64_t)found->rows != m || (int64_t)found->blocks != k || lda != k ||
        c_type != TYPE_F32) {
        sgemm other = atomic_load_explicit(&others, memory_order_relaxed);
        /* false: llama.cpp computes it */
        return other && other(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
    }
    if (found->kind->inputs != b_type) return false; /* llama.cpp quantizes the inputs and asks again */
    const compute_params *mine = params;
    if (mine->ith == 0) atomic_fetch_add_explicit(&where->calls, 1, memory_order_relaxed);
    const size_t all = panels_in(found), each = (all + (size_t)mine->nth - 1) / (size_t)mine->nth;
    const size_t first = smaller((size_t)mine->ith * each, all), last = smaller(first + each, all);
    if (first < last)
        multiply(found, first, last, b, (size_t)n, (size_t)ldb * found->kind->input_bytes, c, (size_t)ldc);
    return true;
}

/* llama.cpp calls this first for K types and many rows; `tensor` is a ggml_tensor, the result. */
EXPORTED bool ggml_compute_forward_mul_mat_tiled(const void *params, void *tensor) {
    get_data data = atomic_load_explicit(&data_of, memory_order_relaxed);
    if (data) {
        const void *weights;
        memcpy(&weights, (const char *)tensor + atomic_load_explicit(&matrix_at, memory_order_relaxed), sizeof weights);
        slot *where;
        if (find(data(weights), &where)) return false; /* llamafile_sgemm is called next */
    }
    tiled other = atomic_load_explicit(&others_tiled, memory_order_relaxed);
    return other && other(params, tensor);
}

void rs_matmul_others(uintptr_t function, uintptr_t tiled_function, uintptr_t get_data_function, size_t at) {
    atomic_store(&others, (sgemm)function);
    atomic_store(&others_tiled, (tiled)tiled_function);
    atomic_store(&matrix_at, at);
    atomic_store(&data_of, (get_data)get_data_function);
}

uintptr_t rs_matmul_entry(void) { return (uintptr_t)llamafile_sgemm; }

void rs_matmul_switch(int32_t index, bool on) { atomic_store(&slots[index].on, on); }

void rs_matmul_attend(bool on) { atomic_store(&attending, on); }

int64_t rs_matmul_calls(int32_t index) { return (int64_t)atomic_load(&slots[index].calls); }
#else
int32_t rs_matmul_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns,
                           size_t count) {
    (void)weights, (void)types, (void)rows, (void)columns, (void)count;
    return -1;
}
void rs_matmul_forget(int32_t index) { (void)index; }
void rs_matmul_others(uintptr_t function, uintptr_t tiled_function, uintptr_t get_data_function, size_t at) {
    (void)function, (void)tiled_function, (void)get_data_function, (void)at;
}
uintptr_t rs_matmul_entry(void) { return 0; }
void rs_matmul_switch(int32_t index, bool on) { (void)index, (void)on; }
void rs_matmul_attend(bool on) { (void)on; }
int64_t rs_matmul_calls(int32_t index) { return (void)index, 0; }
#endif
