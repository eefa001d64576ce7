/* matmul_hook.c: how llama.cpp comes to multiply with packed_matmul.c.
 *
 * llama.cpp's processor backend hands every product of a matrix with rows to `llamafile_sgemm`, a function of a shared library, before it
 * multiplies itself. Linux resolves that name to the first library that offers it, so where this one is loaded first (refspec/llama/matmul_hook.py)
 * the products of matrices that were announced here are computed here, on llama.cpp's own threads, and all others by the function of that name
 * in llama.cpp. A panel is laid out when it is first needed, by the thread that needs it.
 *
 * It stands in another library's place, so unlike the rest of this one it keeps state: the panels, and a thread's input rows. Any number of
 * threads may multiply at once; matrices are taken back (rs_matmul_forget) by who knows that nobody multiplies with them.
 */
#define _GNU_SOURCE
#include "packed_matmul.h"

#ifdef PANELS_X86
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SLOTS = 64 }; /* models at once */

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

/* Panel p from block b on, the beginning of a stretch of `blocks`: all panels of a stretch lie one after the other, as they are read. */
static uint8_t *piece_at(matrix *m, size_t p, size_t b, size_t blocks) { return m->panels + (b * panels_in(m) + p * blocks) * m->kind->panel; }

static size_t stretch_at(const matrix *m, size_t b) { return m->blocks - b < m->kind->stretch ? m->blocks - b : m->kind->stretch; }

/* Has panel p laid out, by this thread if no other has begun. */
static void need(matrix *m, size_t p) {
    if (atomic_load_explicit(&m->state[p], memory_order_acquire) == THERE) return; /* without a write: other threads read the states beside it */
    unsigned char state = MISSING;
    if (atomic_compare_exchange_strong(&m->state[p], &state, BEGUN)) {
        const size_t left = m->rows - p * PANEL, row_bytes = m->blocks * m->kind->bytes;
        for (size_t b = 0; b < m->blocks; b += m->kind->stretch)
            rs_panel_lay_out(m->kind, piece_at(m, p, b, stretch_at(m, b)), m->weights + p * PANEL * row_bytes + b * m->kind->bytes,
                             left < PANEL ? left : PANEL, row_bytes, stretch_at(m, b));
        atomic_store(&m->state[p], THERE);
    }
    while (atomic_load_explicit(&m->state[p], memory_order_acquire) != THERE) sched_yield(); /* another context of the same model is at it */
}

/* Panels first..last-1 times n input rows, `input_stride` bytes apart -> out, rows `out_stride` floats apart. */
static void multiply(matrix *m, size_t first, size_t last, const uint8_t *inputs, size_t n, size_t input_stride, float *out, size_t out_stride) {
    static _Thread_local _Alignas(64) uint8_t prepared[TOGETHER * PREPARED];
    panel_set set;
    if (!rs_panel_set(&set)) return; /* or nothing was announced */
    const panel_kind *k = m->kind;
    for (size_t p = first; p < last; p++) need(m, p);
    for (size_t at = 0; at < n; at += TOGETHER) {
        const size_t rows = n - at < TOGETHER ? n - at : TOGETHER;
        for (size_t b = 0; b < m->blocks; b += k->stretch) {
            const size_t blocks = stretch_at(m, b);
            for (size_t r = 0; r < rows; r++)
                rs_panel_prepare(k, &set, prepared + r * blocks * k->prepared, inputs + (at + r) * input_stride + b * k->input_bytes, blocks);
            for (size_t p = first; p < last; p++) {
                const size_t column = p * PANEL, columns = m->rows - column < PANEL ? m->rows - column : PANEL;
                rs_panel_multiply(&set, k, out + at * out_stride + column, out_stride, piece_at(m, p, b, blocks), columns, prepared, rows, blocks, b == 0);
            }
        }
    }
}

/* ---- matrices llama.cpp multiplies with --------------------------------------------------------------------------- */

typedef struct slot {
    _Atomic(uintptr_t) low, high; /* addresses of its weights, none below a `high` of 0. Every product reads them, and the rest only within them. */
    atomic_bool taken, on;
    matrix *matrices; /* sorted by address */
    size_t count, bytes;
    uint8_t *memory;
    _Alignas(64) atomic_llong products; /* in a line of its own: it is written */
} slot;

static slot slots[SLOTS];

int32_t rs_matmul_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns, size_t count) {
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
        *m = (matrix){(const uint8_t *)weights[i], rs_panel_kind(types[i]), rows[i], columns[i] / rs_panel_kind(types[i])->numbers, NULL, NULL};
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
    atomic_store(&s->low, weights[0]);
    atomic_store(&s->high, weights[count - 1] + 1);
    return (int32_t)(s - slots);
}

void rs_matmul_forget(int32_t index) {
    slot *s = &slots[index];
    atomic_store(&s->high, 0);
    munmap(s->memory, s->bytes);
    free(s->matrices);
    s->matrices = NULL;
    atomic_store(&s->taken, false);
}

typedef bool (*sgemm)(const void *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *, int64_t, int, int, int);
typedef bool (*tiled)(const void *, void *);
typedef void *(*get_data)(const void *);
static _Atomic(sgemm) others; /* llama.cpp's own */
static _Atomic(tiled) others_tiled;
static _Atomic(get_data) data_of; /* ggml_get_data; NULL: how a product holds its matrix is not known */
static atomic_size_t matrix_at;   /* bytes from a product to the address of its matrix */

typedef struct compute_params { int ith, nth; } compute_params; /* struct ggml_compute_params begins so: this thread, of how many */

static matrix *find(const void *weights, slot **where) {
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
        *where = s;
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
    slot *where;
    matrix *found = find(a, &where);
    if (!found || found->kind->type != a_type || (int64_t)found->rows != m || (int64_t)found->blocks != k || lda != k || c_type != TYPE_F32) {
        sgemm other = atomic_load_explicit(&others, memory_order_relaxed);
        return other && other(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type); /* false: llama.cpp multiplies otherwise */
    }
    if (found->kind->inputs != b_type) return false; /* it converts them, and asks again */
    const compute_params *mine = params;
    if (mine->ith == 0) atomic_fetch_add_explicit(&where->products, 1, memory_order_relaxed);
    const size_t all = panels_in(found), each = (all + (size_t)mine->nth - 1) / (size_t)mine->nth;
    const size_t first = (size_t)mine->ith * each < all ? (size_t)mine->ith * each : all, last = first + each < all ? first + each : all;
    if (first < last)
        multiply(found, first, last, b, (size_t)n, (size_t)ldb * found->kind->input_bytes, c, (size_t)ldc);
    return true;
}

/* Of K types llama.cpp asks this function first where rows are many; `product` is a ggml_tensor. */
__attribute__((visibility("default"))) bool ggml_compute_forward_mul_mat_tiled(const void *params, void *product);
bool ggml_compute_forward_mul_mat_tiled(const void *params, void *product) {
    get_data data = atomic_load_explicit(&data_of, memory_order_relaxed);
    if (data) {
        const void *weights;
        memcpy(&weights, (const char *)product + atomic_load_explicit(&matrix_at, memory_order_relaxed), sizeof weights);
        slot *where;
        if (find(data(weights), &where)) return false; /* llamafile_sgemm is asked next */
    }
    tiled other = atomic_load_explicit(&others_tiled, memory_order_relaxed);
    return other && other(params, product);
}

void rs_matmul_others(uintptr_t function, uintptr_t tiled_function, uintptr_t get_data_function, size_t at) {
    atomic_store(&others, (sgemm)function);
    atomic_store(&others_tiled, (tiled)tiled_function);
    atomic_store(&matrix_at, at);
    atomic_store(&data_of, (get_data)get_data_function);
}

uintptr_t rs_matmul_entry(void) { return (uintptr_t)llamafile_sgemm; }

void rs_matmul_switch(int32_t index, bool on) { atomic_store(&slots[index].on, on); }

int64_t rs_matmul_products(int32_t index) { return (int64_t)atomic_load(&slots[index].products); }
#else
int32_t rs_matmul_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns, size_t count) {
    (void)weights, (void)types, (void)rows, (void)columns, (void)count;
    return -1;
}
void rs_matmul_forget(int32_t index) { (void)index; }
void rs_matmul_others(uintptr_t function, uintptr_t tiled_function, uintptr_t get_data_function, size_t at) {
    (void)function, (void)tiled_function, (void)get_data_function, (void)at;
}
uintptr_t rs_matmul_entry(void) { return 0; }
void rs_matmul_switch(int32_t index, bool on) { (void)index, (void)on; }
int64_t rs_matmul_products(int32_t index) { return (void)index, 0; }
#endif
