/* refspec.h: the whole C API of refspec, portable C11.
 *
 * The functions of refspec/reference under their names, and what refspec does between calls of llama.cpp. Not an
 * inference engine: llama.cpp runs the models. The block between the two cdef marks is also the cffi cdef
 * (native/build_ffi.py), so it has no macro and no #include.
 *
 * Rules: output first, sizes last; const inputs; the caller owns all memory; no globals, no allocation, no locks, so
 * any number of threads may call at once on their own outputs (matmul_hook.c is the exception and says what it keeps).
 * Outputs must not overlap inputs unless a function allows it. A row's result never depends on the other rows of the
 * call, bit for bit.
 *
 * Shape legend: T rows, W I O F widths, H query heads, Hkv key/value heads, hd head size, S cached rows, V target
 * vocabulary, D draft vocabulary, Ht target width. All matrices are row-major, weights are [outputs, inputs].
 */
#ifndef REFSPEC_H
#define REFSPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__clang__) /* nothing is fused; for GCC the build says so */
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* Compiles a function a second time for AVX2; the loader chooses. The source fixes the order of every sum, and nothing
 * is fused, so both give the same bits. Empty elsewhere, and under sanitizers, which start after the choice. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && \
    !defined(__SANITIZE_ADDRESS__)
#define RS_FAST __attribute__((target_clones("avx2", "default")))
#else
#define RS_FAST
#endif

/* A helper of such functions: inlined into both copies, because a call would go to the copy without AVX2. */
#if defined(__GNUC__)
#define RS_INLINE static inline __attribute__((always_inline))
#else
#define RS_INLINE static inline
#endif

/* cdef begin */

/* What a function that can fail returns; other ints are documented at their function. */
enum rs_status {
    RS_OK = 0,
    RS_BAD_TOKEN = -1,   /* token id outside 0..V-1 */
    RS_CACHE_FULL = -2,  /* row index outside the cache */
    RS_BAD_CONFIG = -3,  /* switch value or sizes the kernels cannot run */
    RS_NOT_FINITE = -4,  /* a NaN or infinity where a decision was due */
    RS_ENGINE = -5,      /* a llama.cpp call failed; its own code is in the struct */
    RS_BAD_DISTRIBUTION = -6, /* a sum that is not 1, a negative probability, or a draft token with q = 0 */
    RS_BAD_COIN = -7,    /* a coin outside [0, 1) */
    RS_BAD_TREE = -8     /* a parent that does not precede its child */
};

enum rs_rope_style { RS_INTERLEAVED = 0, RS_HALF_SPLIT = 1 };
enum rs_feature_norm { RS_FEATURE_NONE = 0, RS_FEATURE_CONCAT = 1, RS_FEATURE_PER_STATE = 2 };
enum rs_feedback { RS_PRE_NORM = 0, RS_POST_NORM = 1 };
enum rs_residual { RS_RAW = 0, RS_NORMED = 1 };

/* How this build was compiled: "plain" or "sanitized". */
const char *rs_build(void);

/* ---- ops.c: refspec/reference/ops.py ----------------------------------------------------------------------------- */

/* x [T, W], weight [W] -> out [T, W] = weight * x / sqrt(mean(x^2) + eps). In place allowed (out == x). */
void rs_rms_norm(float *out, const float *x, const float *weight, float eps, size_t rows, size_t width);

/* x [T, H, hd], positions [T], freqs [hd/2] divisors or NULL -> out [T, H, hd]. In place allowed. */
void rs_rope(float *out, const float *x, const int64_t *positions, const float *freqs, double theta, int32_t style,
             size_t rows, size_t heads, size_t head_dim);

/* w [O, I], x [T, I] -> out [T, O] = x w^T, each row summed in the same order whatever T is. */
void rs_matvec(float *out, const float *w, const float *x, size_t rows, size_t n_out, size_t n_in);

/* x [T, W] -> out [T, W] = softmax over W; -inf gives exactly 0. In place allowed. */
void rs_softmax(float *out, const float *x, size_t rows, size_t width);

/* gate, up [n] -> out [n] = gate / (1 + exp(-gate)) * up. In place allowed on either. */
void rs_swiglu(float *out, const float *gate, const float *up, size_t n);

/* q [T, H, hd], k and v [S, Hkv, hd], visible [T] in 1..S -> out [T, H*hd]; row t reads the first visible[t] cached
 * rows. weights [H, T, S] receives the attention weights, or is NULL; scratch [S] is working space. */
void rs_attention(float *out, float *weights, float *scratch, const float *q, const float *k, const float *v,
                  const int64_t *visible, size_t rows, size_t keys, size_t heads, size_t kv_heads, size_t head_dim);

/* table [V, W], ids [T], each within 0..V-1 -> out [T, W]. */
void rs_gather_rows(float *out, const float *table, const int64_t *ids, size_t rows, size_t width);

/* Lowest index of the largest of x [n]; -1 - i when x[i] is the first NaN; n must be at least 1. */
int64_t rs_argmax(const float *x, size_t n);

/* rs_argmax, and *prob = softmax(x)[index]; -1 - index, with *prob untouched, also when the largest is infinite. */
int64_t rs_argmax_prob(float *prob, const float *x, size_t n);

/* The k largest of x [n], largest first, lowest index on ties -> ids [k], and probs [k] their softmax(x / temperature),
 * temperature > 0. Returns how many are not -inf, at most k, or RS_NOT_FINITE for NaN, +inf or all -inf. */
int32_t rs_top_probs(int32_t *ids, float *probs, const float *x, float temperature, size_t k, size_t n);

/* True when x [n] holds neither NaN nor infinity. */
bool rs_all_finite(const float *x, size_t n);

/* Feature gathering: src[s] points to state s, T rows of W floats `src_stride` floats apart -> row t of out holds the
 * states side by side, rows `out_stride` floats apart (at least n_states * W). norm_weights[s] points to [W]: every
 * state is RMS-normed on the way (FeatureNorm.PER_STATE); NULL copies. src_stride = W for llama.cpp's layer inputs,
 * n_states * W for rows already gathered. In place allowed when the strides are equal and src[s] = out + s * W. */
void rs_gather_features(float *out, const float *const *src, const float *const *norm_weights, float eps, size_t rows,
                        size_t n_states, size_t width, size_t src_stride, size_t out_stride);

/* ggml's Q8_0: x [blocks, 32] finite -> out [blocks, 34] bytes, of which the last 32 are written, and scale [blocks] =
 * max |x| / 127, which the caller stores as float16 in the first two. Rounds halves away from zero. */
void rs_quantize_q8_0(uint8_t *out, float *scale, const float *x, size_t blocks);

/* ---- packed_matmul.c: refspec/reference/packed_matmul.py --------------------------------------------------------- */

/* The instruction set of this processor that is used: "avx512", "avx2", or "" if none is supported. */
const char *rs_matmul_set(void);

/* Whether a matrix of this ggml_type can be packed into panels (16 rows side by side, see packed_matmul.h). */
bool rs_matmul_takes(int32_t type);

/* weights [rows] and inputs [n], rows of `blocks` blocks as ggml stores them -> out [n, rows], by an instruction set.
 * scratch [rs_matmul_scratch bytes] is working space. RS_BAD_CONFIG for an unknown type or set. */
int32_t rs_matmul(float *out, uint8_t *scratch, const char *set, int32_t type, const uint8_t *weights,
                  const uint8_t *inputs, size_t n, size_t rows, size_t blocks);
size_t rs_matmul_scratch(int32_t type, size_t n); /* bytes */

/* Rows b [n, k] times rows a [m, k], float16 as bits -> out [n, m], computed in `parts` parts as threads share it, by an
 * instruction set. RS_BAD_CONFIG for an unknown set, or a k that is no multiple of 16. */
int32_t rs_matmul_rows(float *out, const char *set, const uint16_t *a, size_t m, const uint16_t *b, size_t n, size_t k,
                       size_t parts);

/* ---- matmul_hook.c: refspec/llama/matmul_hook.py ----------------------------------------------------------------- */

/* From now on llama.cpp's multiplications by these matrices [count] are computed here: ascending addresses of whole
 * tensors, their ggml_types (rs_matmul_takes), rows and columns. Returns the index of the set; negative: no room. */
int32_t rs_matmul_announce(const uintptr_t *weights, const int32_t *types, const size_t *rows, const size_t *columns,
                           size_t count);

/* Ends that; call it before the weights are freed, while no thread multiplies with them. */
void rs_matmul_forget(int32_t index);

/* Leaves these matrices to llama.cpp while `on` is false; not during a computation. */
void rs_matmul_switch(int32_t index, bool on);

/* Whether llama.cpp's products of queries with keys, and of weights with values, in float16 and without flash attention,
 * are computed here for all models; not during a computation. */
void rs_matmul_attend(bool on);

/* How many multiplications were computed here; 0 after a computation means that llama.cpp does not call the hook. */
int64_t rs_matmul_calls(int32_t index);

/* llama.cpp's own functions under the hooked names, for all other matrices (0: it has none): llamafile_sgemm, and
 * ggml_compute_forward_mul_mat_tiled, which gets a ggml_tensor; `at` bytes into that is the address of the matrix,
 * whose weights ggml_get_data returns (0: unknown, and that function is left to llama.cpp). rs_matmul_entry is the
 * address of llamafile_sgemm here. */
void rs_matmul_others(uintptr_t function, uintptr_t tiled_function, uintptr_t get_data_function, size_t at);
uintptr_t rs_matmul_entry(void);

/* ---- penalties.c: refspec/reference/penalties.py ----------------------------------------------------------------- */

typedef struct rs_penalties {
    double repeat, presence, frequency, dry_multiplier, dry_base;
    int32_t repeat_last_n, dry_allowed_length, dry_last_n; /* last_n: -1 is all */
    bool counting, dry;            /* Penalties.counting, Penalties.dry */
    const int8_t *breaks;          /* [V] above 0: a sequence breaker; NULL: there are none */
    int32_t *scratch;              /* [V] zeros before and after */
    int32_t *lengths;              /* scratch, one number per token of the longest history */
} rs_penalties;

/* row [V] = logits of the token that follows history [n], tokens below V, under the penalties. */
void rs_penalize(float *row, const int32_t *history, size_t n, const rs_penalties *penalties);

/* ---- eagle3.c: refspec/reference/eagle3.py ----------------------------------------------------------------------- */

/* Threads that share the outputs of a large matrix, as addresses of functions of the OpenMP library that llama.cpp
 * uses, so that they are the same threads (refspec/llama/openmp.py). */
typedef struct rs_team {
    void (*parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags); /* GOMP_parallel */
    int (*rank)(void);   /* omp_get_thread_num */
    int (*size)(void);   /* omp_get_num_threads */
    unsigned threads;    /* constant, because GNU OpenMP ends the threads that a smaller team does not use */
} rs_team;

typedef struct rs_eagle3_config {
    size_t hidden, target_hidden;            /* H, Ht */
    size_t n_states;        /* captured states per row */
    size_t n_heads, n_kv_heads, head_dim;
    size_t intermediate, vocab, draft_vocab; /* F, V, D */
    size_t capacity;        /* rows the key/value cache holds */
    double rope_theta;
    float rms_eps;
    int32_t rope_style;     /* enum rs_rope_style */
    int32_t feature_norm;   /* enum rs_feature_norm */
    int32_t feedback;       /* enum rs_feedback */
    int32_t residual;       /* enum rs_residual */
    int32_t head_norm;      /* 0: logits = output h, without the norm in between */
    int32_t qk_norm;        /* 1: RMSNorm over hd on query and key heads before RoPE */
    const rs_team *team;    /* NULL: the calling thread alone; results are the same bits */
} rs_eagle3_config;

/* A matrix [n_out, n_in] of the caller's, row after row: float32, or in a type of ggml with ggml's functions for it
 * (refspec/llama/vec_dot.py): the input is quantized once, then one dot product per output, as in llama.cpp. */
typedef struct rs_matrix {
    const void *data;              /* NULL: absent */
    size_t row_bytes;              /* `dot` is NULL for float32 */
    void (*dot)(int32_t n, float *out, size_t, const void *row, size_t, const void *packed, size_t, int32_t);
    void (*pack)(const float *x, void *packed, int64_t n); /* NULL: dot takes float32 */
    void (*unpack)(const void *row, float *x, int64_t n);  /* a row as float32, for embeddings; NULL: it is */
} rs_matrix;

/* Pointers into the caller's arrays, names and shapes of refspec/reference/config.py:weight_shapes. */
typedef struct rs_eagle3_weights {
    rs_matrix token_embd;               /* [V, H] */
    rs_matrix fc;                       /* [H, n_states*Ht] */
    const float *fc_norm;               /* [n_states*Ht], CONCAT only */
    const float *const *fc_norm_state;  /* n_states pointers to [Ht], PER_STATE only */
    const float *attn_norm;             /* [H] of the token embedding */
    const float *hidden_norm;           /* [H] of the state */
    rs_matrix attn_q;                   /* [nh*hd, 2H] */
    rs_matrix attn_k, attn_v;           /* [nkv*hd, 2H] */
    const float *q_norm, *k_norm;       /* [hd], qk_norm only */
    const float *rope_freqs;            /* [hd/2] divisors or NULL */
    rs_matrix attn_output;              /* [H, nh*hd] */
    const float *ffn_norm;              /* [H] */
    rs_matrix ffn_gate, ffn_up;         /* [F, H] */
    rs_matrix ffn_down;                 /* [H, F] */
    const float *output_norm;           /* [H], may be NULL when neither the head nor the feedback is normed */
    rs_matrix output;                   /* [D, H] */
    /* Biases, each as long as its matrix has rows; NULL where the drafter has none. */
    const float *fc_bias, *attn_q_bias, *attn_k_bias, *attn_v_bias, *attn_output_bias;
    const float *ffn_gate_bias, *ffn_up_bias, *ffn_down_bias, *output_bias;
} rs_eagle3_weights;

/* RS_OK, or RS_BAD_CONFIG: a size is 0, heads do not divide, a switch is unknown or a needed pointer is NULL. */
int32_t rs_eagle3_check(const rs_eagle3_config *config, const rs_eagle3_weights *weights);

/* Floats of scratch that rs_eagle3_encode and rs_eagle3_step need. */
size_t rs_eagle3_scratch(const rs_eagle3_config *config);

/* Feature norm, then fc: feature [n_states*Ht] -> state [H]. */
void rs_eagle3_encode(float *state, float *scratch, const rs_eagle3_config *config, const rs_eagle3_weights *weights,
                      const float *feature);

/* One drafter row: reads keys and values of cache rows 0..row-1, writes those of `row`, and returns logits [D] (NULL
 * skips the head), the block output hidden [H] and the state [H] for the next row, each if not NULL; if all are NULL
 * only the key and value are computed. k_cache, v_cache [capacity, nkv, hd]; attn_weights [nh, row+1] or NULL. RS_OK,
 * RS_BAD_TOKEN or RS_CACHE_FULL. */
int32_t rs_eagle3_step(float *logits, float *hidden, float *next_state, float *k_cache, float *v_cache,
                       float *attn_weights, float *scratch, const rs_eagle3_config *config,
                       const rs_eagle3_weights *weights, int64_t token, const float *state, int64_t position,
                       size_t row);

/* A drafter with its rows, for chains; `rs_chain` below is the same in llama.cpp. The caller owns the buffers. */
typedef struct rs_eagle3_chain {
    const rs_eagle3_config *config;
    const rs_eagle3_weights *weights;
    float *k_cache, *v_cache;      /* [capacity, nkv, hd] */
    float *scratch;                /* rs_eagle3_scratch floats */
    float *true_logits, *true_state;       /* [D] and [H]: logits of the last true row, and the state it hands on */
    float *drafted_logits, *drafted_state; /* the same of the last chained row */
    const int32_t *d2t;            /* [D] target ids, or NULL: draft ids are target ids */
    const float *logits, *state;   /* of the row to draft after: the true ones, or the drafted ones */
    const rs_penalties *penalties; /* draft tokens are chosen under these; or NULL */
    int32_t *history;              /* tokens by position: the output's, then draft tokens, written here */
    size_t counted_from, decided;  /* the first position that counts; the number of tokens before the draft */
    float *row, *penalized;        /* [V] and [D] of working space */
} rs_eagle3_chain;

/* True rows first..first+T-1 from tokens [T] and features [T, n_states*Ht]; drafting continues after the last of them.
 * RS_OK, RS_BAD_TOKEN, RS_CACHE_FULL or RS_NOT_FINITE (a feature), all of them before a row is written. */
int32_t rs_eagle3_extend(rs_eagle3_chain *chain, const int32_t *tokens, const float *features, size_t rows,
                         size_t first);

/* rs_eagle3_extend, and the mean over these rows of the log-probability of the likeliest token after each, without
 * penalties; NaN if T = 0. The statuses of rs_eagle3_extend, and RS_NOT_FINITE for logits; rows may then be written. */
int32_t rs_eagle3_survey(rs_eagle3_chain *chain, double *mean_log_probability, const int32_t *tokens,
                         const float *features, size_t rows, size_t first);

/* One chained row: token, with chain->state. RS_OK, RS_BAD_TOKEN or RS_CACHE_FULL. */
int32_t rs_eagle3_follow(rs_eagle3_chain *chain, int32_t token, size_t row);

/* A chain of k argmax draft tokens, k - 1 rows from `first` on: tokens [k] as target ids, with their probabilities
 * confidence [k]. RS_OK, RS_CACHE_FULL or RS_NOT_FINITE (logits). */
int32_t rs_eagle3_draft(rs_eagle3_chain *chain, int32_t *tokens, float *confidence, size_t k, size_t first);

/* The feedback rule alone: h [H] -> out [H] = RMSNorm(h; output_norm) if post_norm, else h. In place allowed. */
void rs_draft_feedback(float *out, const float *h, const float *output_norm, float eps, int32_t post_norm,
                       size_t width);

/* ---- hooks.c: hidden states out of llama.cpp --------------------------------------------------------------------- */

struct ggml_tensor;

enum rs_capture_error {
    RS_CAPTURE_OK = 0,
    RS_CAPTURE_OVERFLOW = 1,  /* more rows than `capacity`; the surplus was dropped */
    RS_CAPTURE_NOT_F32 = 2,   /* a wanted tensor is not float32 */
    RS_CAPTURE_WIDTH = 3      /* its size is no multiple of `width` */
};

/* user_data of rs_eval_callback. The functions are llama.cpp's (ggml_get_name, ggml_backend_tensor_get, ggml_nelements,
 * ggml_nbytes), passed as addresses: no ggml header is needed to build. */
typedef struct rs_capture {
    const char *(*get_name)(const struct ggml_tensor *tensor);
    void (*tensor_get)(const struct ggml_tensor *tensor, void *data, size_t offset, size_t size);
    int64_t (*nelements)(const struct ggml_tensor *tensor);
    size_t (*nbytes)(const struct ggml_tensor *tensor);
    const char *const *names;  /* n_states tensor names wanted, e.g. "l_out-3" */
    float *const *buffers;     /* n_states buffers [capacity, width] */
    size_t *rows;              /* n_states counts of rows written since rs_capture_reset */
    size_t n_states, width, capacity;
    int32_t error;             /* first enum rs_capture_error since rs_capture_reset */
    int32_t error_state;       /* which state it happened at */
} rs_capture;

/* A ggml_backend_sched_eval_callback: appends the rows of each wanted tensor to its buffer, once per micro-batch. Never
 * writes past `capacity` and never cancels the computation; look at `error` afterwards. */
bool rs_eval_callback(struct ggml_tensor *tensor, bool ask, void *user_data);

/* Start a new decode: forget rows and error. */
void rs_capture_reset(rs_capture *capture);

/* ---- cycle.c: the calls of a decode cycle on llama.cpp: refspec/llama/target.py, refspec/llama/eagle3.py --------- */

/* Mirror of `struct llama_batch`; sizes and offsets are compared with llama-cpp-python's before the first call. */
typedef struct rs_batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} rs_batch;

/* A target in llama.cpp: its functions as addresses, its context, and buffers of the caller for `capacity` rows. */
typedef struct rs_target {
    int32_t (*decode)(void *context, rs_batch batch);      /* llama_decode */
    float *(*logits_ith)(void *context, int32_t row);      /* llama_get_logits_ith */
    float *(*layer_input)(void *context, uint32_t layer); /* llama_get_embeddings_layer_inp; unused if n_states is 0 */
    void *context;
    rs_batch batch;                /* token [capacity], every row an output */
    const uint32_t *layers;        /* n_states boundaries to copy out */
    float *features;               /* [capacity, n_states, Ht] receives them */
    size_t n_states, width, vocab, capacity;
    float *logits;                 /* [T, V] of the last run, or NULL */
    int32_t code;                  /* what llama.cpp returned last */
    double seconds;                /* spent in llama.cpp; the caller takes it away */
} rs_target;

/* Run the T tokens in the batch at positions first..; keeps their logits and states. RS_OK, RS_BAD_CONFIG (T is 0 or
 * above capacity), RS_NOT_FINITE (logits of the newest row) or RS_ENGINE. */
int32_t rs_target_run(rs_target *target, size_t rows, int32_t first);

/* One EAGLE-3 drafter in llama.cpp: its functions as addresses, its contexts, and buffers of the caller for `capacity`
 * rows. ENCODE and DECODE have a context each: llama.cpp keeps a context's graph only while its calls repeat. */
typedef struct rs_chain {
    int32_t (*encode)(void *context, rs_batch batch);      /* llama_encode */
    int32_t (*decode)(void *context, rs_batch batch);      /* llama_decode */
    float *(*logits_ith)(void *context, int32_t row);      /* llama_get_logits_ith */
    float *(*states)(void *context);                       /* llama_get_embeddings_nextn */
    void *encoder, *decoder;
    rs_batch features;             /* embd [capacity, n_states*Ht], every row an output */
    rs_batch steps;                /* token [capacity] and embd [capacity, H], every row an output */
    const float *const *fc_norm;   /* n_states pointers to [Ht] (PER_STATE), or NULL: features as they are */
    const float *output_norm;      /* [H]: post-norm feedback; NULL: pre-norm */
    const float **sources;         /* working space for n_states pointers */
    float *last_g;                 /* [H] receives the state of the last row extended */
    size_t n_states, target_width, width, vocab, capacity;
    float eps;
    const float *logits, *state;   /* outputs of the newest row: [V] and [H], or NULL */
    int32_t code;                  /* what llama.cpp returned last */
    double seconds;                /* spent in llama.cpp; the caller takes it away */
} rs_chain;

/* True rows at positions first..: feature norm, ENCODE, DECODE with tokens [T], features [T, n_states*Ht]. RS_OK,
 * RS_BAD_CONFIG (T is 0 or above capacity), RS_BAD_TOKEN, RS_NOT_FINITE (a feature) or RS_ENGINE; in case of error the
 * cache may hold rows from `first` on. */
int32_t rs_chain_extend(rs_chain *chain, const int32_t *tokens, const float *features, size_t rows, int32_t first);

/* Chain of k argmax draft tokens after the newest row: tokens [k] with their probabilities confidence [k], k - 1 rows
 * at positions first... RS_OK, RS_NOT_FINITE (logits) or RS_ENGINE. */
int32_t rs_chain_draft(rs_chain *chain, int32_t *tokens, float *confidence, size_t k, int32_t first);

/* ---- sampling.c: refspec/reference/sampling.py and refspec/reference/verify.py (probabilities are double) -------- */

/* refspec.reference.sampling.Sampler, which validates it. Off: top_k 0, top_p 1, min_p 0; temperature 0 is argmax. */
typedef struct rs_sampler {
    double temperature, top_p, min_p;
    int32_t top_k, n_bias;
    const int32_t *bias_ids;    /* [n_bias] distinct token ids */
    const double *bias_values;  /* [n_bias] finite or -inf */
} rs_sampler;

/* Below, p [V] and order [V] without a stated meaning are working space, and a negative result is a status:
 * RS_NOT_FINITE (logits with NaN or +inf, or all -inf), RS_BAD_TOKEN (bias or draft), RS_BAD_DISTRIBUTION, RS_BAD_COIN.
 * Bits equal those of the Python function of the same name, which raises for the same input and says why. */

/* The uniform multiple of 2^-53 in [0, 1) that belongs to (seed, output position, stream). */
double rs_coin(uint64_t seed, uint64_t position, uint64_t stream);

/* logits [V] -> p [V], the target's distribution. RS_OK or a status. */
int32_t rs_p_target(double *p, int32_t *order, const float *logits, const rs_sampler *sampler, size_t vocab);

/* Lowest index whose cumulative probability exceeds coin * sum(p), or a status. */
int32_t rs_invert_cdf(const double *p, double coin, size_t vocab);

/* rs_invert_cdf of rs_p_target; at temperature 0 one pass over the logits. Token or a status. */
int32_t rs_sample(const float *logits, const rs_sampler *sampler, double coin, double *p, int32_t *order, size_t vocab);

/* p, q [V] -> rest [V] = max(p - q, 0) normalised, p when nothing is left. In place allowed (rest == p). */
void rs_residual(double *rest, const double *p, const double *q, size_t vocab);

/* logits: k+1 pointers to [V]; draft [k], coins [k+1] -> tokens [k+1], of which accepted + 1 are written. Returns the
 * number accepted or a status. Rows after the first mismatch are not read. */
int32_t rs_verify_deterministic(int32_t *tokens, const float *const *logits, const int32_t *draft,
                                const rs_sampler *sampler, const double *coins, double *p, int32_t *order, size_t k,
                                size_t vocab);

/* The same for drafts sampled from q_draft (k pointers to [V]); accept_coins [k], residual_coins [k+1]. */
int32_t rs_verify_rejection(int32_t *tokens, const float *const *logits, const int32_t *draft,
                            const double *const *q_draft, const rs_sampler *sampler, const double *accept_coins,
                            const double *residual_coins, double *p, int32_t *order, size_t k, size_t vocab);

/* True when q [V] holds nothing negative and sums to 1 within 1e-9. */
bool rs_is_distribution(const double *q, size_t vocab);

/* ---- cycle.c again: one verify step, the middle of refspec/decoding/cycle.py ------------------------------------- */

/* What a verify step with one coin per output position works on. */
typedef struct rs_verifier {
    rs_target *target;
    bool (*remove)(void *memory, int32_t sequence, int32_t from, int32_t to); /* llama_memory_seq_rm; to -1: the rest */
    void *memory;                  /* of the target's context */
    const rs_sampler *sampler;
    uint64_t seed, stream;         /* of the coins */
    bool pair_rows;                /* a single token runs beside a copy of itself, which is removed again */
    const float **rows;            /* working space for `capacity` of the target's rows */
    double *coins;                 /* the same */
    double *p;                     /* working space [V], as is `order` */
    int32_t *order;
    int32_t *tokens;               /* [capacity] receives the tokens decided */
    const rs_penalties *penalties; /* or NULL */
    int32_t *history;              /* with penalties: [n_ctx] the token of every position; receives those run */
    int32_t counted_from;          /* the first position whose token counts */
    bool ran;                      /* the tokens of the last step have been run: what failed, failed later */
} rs_verifier;

/* Run the pending token and draft [k] at positions first.., penalize their logits where they lie if so asked, decide as
 * rs_verify_deterministic does with the coins of output positions position.., and remove the positions that were not
 * accepted. Returns the number accepted, with accepted + 1 tokens decided, or a status: of rs_target_run, of
 * rs_verify_deterministic (then all k + 1 positions are still held), or RS_ENGINE where they could not be removed. */
int32_t rs_verify_step(rs_verifier *verifier, int32_t pending, const int32_t *draft, size_t k, int32_t first,
                       uint64_t position);

/* ---- tree.c: refspec/reference/tree_verify.py -------------------------------------------------------------------- */

/* In the next two a tree is draft [N] tokens and parents [N], -1 for the pending token; logits: N+1 pointers to [V],
 * row 0 the pending token's, row i + 1 node i's; path [h], h the height of the tree, receives the accepted nodes,
 * tokens [h+1] their tokens and one more. They return the number accepted or a status. coins [h+1], one per level. */
int32_t rs_verify_tree_deterministic(int32_t *tokens, int32_t *path, const float *const *logits, const int32_t *draft,
                                     const int32_t *parents, const rs_sampler *sampler, const double *coins, double *p,
                                     int32_t *order, size_t n_nodes, size_t vocab);

/* For siblings drawn without replacement from distributions[row of the parent], N+1 pointers to [V], NULL for a row
 * without children; accept_coins [h, width] by level and sibling; residual_coins [h+1]; q [V] is working space. */
int32_t rs_verify_tree_rejection(int32_t *tokens, int32_t *path, const float *const *logits, const int32_t *draft,
                                 const int32_t *parents, const double *const *distributions, const rs_sampler *sampler,
                                 const double *accept_coins, const double *residual_coins, double *p, double *q,
                                 int32_t *order, size_t n_nodes, size_t width, size_t vocab);

/* q [V] = q without `token`, normalised; all 0 when nothing is left. */
void rs_without(double *q, int32_t token, size_t vocab);

/* ---- grammar.c: refspec/grammar/tokens.py ------------------------------------------------------------------------ */

/* after [V], -1 before, receives the state that each token leads to from `state`, unless that is `dead`. The table
 * [S+1, 256] is of the automaton. Node i of the trie of tokens has the last byte byte[i], the children child[i] up to
 * child[i+1], which come after it, and the tokens ids[end[i]] up to ids[end[i+1]]; node 0 is the root. nodes and states
 * [N] are working space. */
void rs_grammar_walk(int32_t *after, const int32_t *table, int32_t dead, int32_t state, const uint8_t *byte,
                     const int32_t *child, const int32_t *end, const int32_t *ids, int32_t *nodes, int32_t *states);

/* cdef end */

#endif
