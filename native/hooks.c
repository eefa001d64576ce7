/* hooks.c: copies hidden states out of a running llama.cpp graph.
 *
 * Not a binding: it includes no header of llama.cpp or ggml. Functions of that library arrive as addresses in
 * rs_capture, and a tensor is an opaque pointer, so a change in its layout cannot break this file.
 */
#include "refspec.h"

#include <string.h>

static void fail(rs_capture *c, int32_t error, size_t state) {
    if (c->error == RS_CAPTURE_OK) {
        c->error = error;
        c->error_state = (int32_t)state;
    }
}

static void append(rs_capture *c, size_t state, const struct ggml_tensor *tensor) {
    int64_t elements = c->nelements(tensor);
    if (elements <= 0) return; /* the last layer of a decode without outputs */
    if (c->nbytes(tensor) != (size_t)elements * sizeof(float)) {
        fail(c, RS_CAPTURE_NOT_F32, state);
        return;
    }
    if ((size_t)elements % c->width != 0) {
        fail(c, RS_CAPTURE_WIDTH, state);
        return;
    }
    size_t rows = (size_t)elements / c->width, room = c->capacity - c->rows[state];
    if (rows > room) {
        fail(c, RS_CAPTURE_OVERFLOW, state);
        rows = room;
    }
    if (rows == 0) return;
    c->tensor_get(tensor, c->buffers[state] + c->rows[state] * c->width, 0, rows * c->width * sizeof(float));
    c->rows[state] += rows;
}

bool rs_eval_callback(struct ggml_tensor *tensor, bool ask, void *user_data) {
    rs_capture *c = user_data;
    const char *name = c->get_name(tensor);
    for (size_t s = 0; s < c->n_states; s++)
        if (strcmp(name, c->names[s]) == 0) {
            if (ask) return true; /* yes, stop here so that its data can be read */
            append(c, s, tensor);
        }
    return !ask; /* after a node: go on, even on error: a half-computed graph is worse than a flag */
}

void rs_capture_reset(rs_capture *c) {
    for (size_t s = 0; s < c->n_states; s++) c->rows[s] = 0;
    c->error = RS_CAPTURE_OK;
    c->error_state = -1;
}
