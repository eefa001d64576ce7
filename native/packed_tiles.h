/* packed_tiles.h: a panel times a few input rows, for one instruction set; included by packed_avx2.c, packed_avx512.c.
 *
 * They define before: the types `ints` (16 int32, or 64 bytes, of a panel) and `floats` (16) with their operations
 * (i_..., f_...); ON, which compiles a function for the instruction set; TILE_FN, which inlines it too; SET_TILE, the
 * input rows that the registers hold. The order of every sum is that of refspec/reference/packed_matmul.py: integers
 * within a block, blocks one after the other, nothing fused. So a result depends neither on the instruction set nor on
 * how many rows are computed together.
 */

/* Each `rows` below is a constant once inlined, so that the loops over it unroll into registers. */
#define ROWS UNROLLED for (int r = 0; r < rows; r++)
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

/* The product of two float16 numbers is exact in float32, so a fused multiply-add gives the same bits. */
TILE_FN void tile_f16(float *out, size_t out_stride, bool first, const int rows, const panel_f16 *p, const float *in,
                      size_t numbers, size_t stride) {
    floats even[SET_TILE], odd[SET_TILE];
    ROWS even[r] = odd[r] = f_zero();
    size_t k = 0;
    for (; k + 1 < numbers; k += 2) {
        floats a = f_half(p[k].x), b = f_half(p[k + 1].x);
        ROWS {
            even[r] = f_fused(a, f_set(in[r * stride + k]), even[r]);
            odd[r] = f_fused(b, f_set(in[r * stride + k + 1]), odd[r]);
        }
    }
    if (k < numbers) {
        floats a = f_half(p[k].x);
        ROWS even[r] = f_fused(a, f_set(in[r * stride + k]), even[r]);
    }
    ROWS f_store(out + r * out_stride, f_add(first ? f_zero() : f_load(out + r * out_stride), f_add(even[r], odd[r])));
}

TILE_FN void tile_q8_0(float *out, size_t out_stride, bool first, const int rows, const panel_q8_0 *p,
                       const input_32 *in, size_t blocks, size_t stride) {
    floats total[SET_TILE];
    ROWS total[r] = first ? f_zero() : f_load(out + r * out_stride);
    for (size_t b = 0; b < blocks; b++) {
        ints sum[SET_TILE];
        floats d = f_half(p[b].d);
        ROWS sum[r] = i_set(in[r * stride + b].offset);
        UNROLLED for (int t = 0; t < 8; t++) {
            signed_codes x = i_signed(i_load(p[b].codes[t]));
            ROWS sum[r] = i_dot_signed(sum[r], x, in[r * stride + b].words[t]);
        }
        ROWS total[r] = f_add(total[r], f_mul(f_mul(d, f_set(in[r * stride + b].d)), f_of(sum[r])));
    }
    ROWS f_store(out + r * out_stride, total[r]);
}

/* Q4_0 and Q4_1, and Q5_0 and Q5_1, whose codes have a `fifth` bit; Q4_1 and Q5_1 have a `least` value. */
TILE_FN void tile_q45(float *out, size_t out_stride, bool first, const int rows, const uint8_t *panel, const bool fifth,
                      const bool least, const input_32 *in, size_t blocks, size_t stride) {
    const size_t head = (least ? 2 : 1) * PANEL * sizeof(uint16_t);
    const size_t size = head + (fifth ? sizeof(group_32) : offsetof(group_32, hi));
    floats total[SET_TILE];
    ROWS total[r] = first ? f_zero() : f_load(out + r * out_stride);
    for (size_t b = 0; b < blocks; b++, panel += size) {
        const group_32 *p = (const group_32 *)(panel + head);
        ints sum[SET_TILE], high = i_set(0);
        floats d = f_half((const uint16_t *)panel);
        if (fifth) high = i_load(p->hi);
        ROWS sum[r] = i_set(least ? 0 : in[r * stride + b].offset);
        UNROLLED for (int t = 0; t < 4; t++) {
            ints both = i_load(p->lo[t]), x = i_and(both, 0x0f), y = i_and(i_right(both, 4), 0x0f);
            if (fifth) {
                x = i_or(x, i_and(i_left(high, 4 - t), 0x10));
                y = i_or(y, i_and(i_right(high, t), 0x10));
            }
            ROWS sum[r] = i_dot(i_dot(sum[r], x, in[r * stride + b].words[t]), y, in[r * stride + b].words[t + 4]);
        }
        ROWS total[r] = f_add(total[r], f_mul(f_mul(d, f_set(in[r * stride + b].d)), f_of(sum[r])));
        if (least) {
            floats m = f_half((const uint16_t *)panel + PANEL);
            ROWS {
                floats codes = f_set((float)in[r * stride + b].offset);
                total[r] = f_add(total[r], f_mul(f_mul(m, f_set(in[r * stride + b].d)), codes));
            }
        }
    }
    ROWS f_store(out + r * out_stride, total[r]);
}

#define TILE_Q45(name, fifth, least)                                                                                   \
    TILE_FN void tile_##name(float *out, size_t out_stride, bool first, const int rows, const void *p,                 \
                             const input_32 *in, size_t blocks, size_t stride) {                                       \
        tile_q45(out, out_stride, first, rows, p, fifth, least, in, blocks, stride);                                   \
    }
TILE_Q45(q4_0, false, false)
TILE_Q45(q4_1, false, true)
TILE_Q45(q5_0, true, false)
TILE_Q45(q5_1, true, true)

/* Q4_K, and Q5_K, whose groups hold a `fifth` bit. */
TILE_FN void tile_q45_k(float *out, size_t out_stride, bool first, const int rows, const uint8_t *panel,
                        const bool fifth, const input_256 *in, size_t blocks, size_t stride) {
    const size_t size = fifth ? sizeof(panel_q5_k) : sizeof(panel_q4_k);
    const size_t group = fifth ? sizeof(group_q5_k) : sizeof(group_q4_k);
    floats total[SET_TILE];
    ROWS total[r] = first ? f_zero() : f_load(out + r * out_stride);
    for (size_t b = 0; b < blocks; b++) {
        const panel_k_head *head = (const panel_k_head *)(panel + b * size);
        const input_256 *at = in + b;
        ints all[SET_TILE];
        ROWS all[r] = i_set(0);
        for (int g = 0; g < K_GROUPS; g++) {
            /* a group_q5_k begins with one */
            const group_q4_k *p = (const group_q4_k *)((const uint8_t *)(head + 1) + g * group);
            ints sum[SET_TILE], scale = i_unsigned_bytes(p->scales), high = i_set(0);
            if (fifth) high = i_load(((const group_q5_k *)p)->hi);
            ROWS sum[r] = i_set(0);
            UNROLLED for (int t = 0; t < 4; t++) {
                ints both = i_load(p->lo[t]), x = i_and(both, 0x0f), y = i_and(i_right(both, 4), 0x0f);
                if (fifth) {
                    x = i_or(x, i_and(i_left(high, 4 - t), 0x10));
                    y = i_or(y, i_and(i_right(high, t), 0x10));
                }
                ROWS sum[r] = i_dot(i_dot(sum[r], x, at[r * stride].words[8 * g + t]), y,
                                    at[r * stride].words[8 * g + t + 4]);
            }
            ROWS all[r] = i_add(all[r], i_mul(sum[r], scale));
        }
        floats d = f_half(head->d), dmin = f_half(head->dmin);
        ROWS total[r] = f_add(total[r], f_mul(f_mul(d, f_set(at[r * stride].d)), f_of(all[r])));
        ROWS all[r] = i_set(0);
        for (int g = 0; g < K_GROUPS / 2; g++) {
            ints mins = i_unsigned_pairs(head->mins[g]);
            ROWS all[r] = i_dot_pairs(all[r], mins, at[r * stride].sums[g]);
        }
        ROWS total[r] = f_sub(total[r], f_mul(f_mul(dmin, f_set(at[r * stride].d)), f_of(all[r])));
    }
    ROWS f_store(out + r * out_stride, total[r]);
}

TILE_FN void tile_q4_k(float *out, size_t out_stride, bool first, const int rows, const panel_q4_k *p,
                       const input_256 *in, size_t blocks, size_t stride) {
    tile_q45_k(out, out_stride, first, rows, (const uint8_t *)p, false, in, blocks, stride);
}

TILE_FN void tile_q5_k(float *out, size_t out_stride, bool first, const int rows, const panel_q5_k *p,
                       const input_256 *in, size_t blocks, size_t stride) {
    tile_q45_k(out, out_stride, first, rows, (const uint8_t *)p, true, in, blocks, stride);
}

/* all += scale times the sums over 16 numbers of group g, words 0..3 of it or, `upper` 4, words 4..7. */
TILE_FN void half_q6_k(ints *all, const int rows, const group_q6_k *p, int g, const int upper, const input_256 *in,
                       size_t stride) {
    ints sum[SET_TILE], scale = i_signed_bytes(p->scales[upper / 4]);
    ROWS sum[r] = i_set(in[r * stride].offset[2 * g + upper / 4]);
    UNROLLED for (int t = 0; t < 4; t++) {
        const int shift = 2 * ((t + upper) / 2);
        ints low = i_load(p->lo[t]), high = i_load(p->hi[t & 1]);
        ints four = i_and(upper ? i_right(low, 4) : low, 0x0f);
        ints two = i_and(shift <= 4 ? i_left(high, 4 - shift) : i_right(high, shift - 4), 0x30);
        ints x = i_or(four, two);
        ROWS sum[r] = i_dot(sum[r], x, in[r * stride].words[8 * g + t + upper]);
    }
    ROWS all[r] = i_add(all[r], i_mul(sum[r], scale));
}

TILE_FN void tile_q6_k(float *out, size_t out_stride, bool first, const int rows, const panel_q6_k *p,
                       const input_256 *in, size_t blocks, size_t stride) {
    floats total[SET_TILE];
    ROWS total[r] = first ? f_zero() : f_load(out + r * out_stride);
    for (size_t b = 0; b < blocks; b++) {
        ints all[SET_TILE];
        ROWS all[r] = i_set(0);
        for (int g = 0; g < K_GROUPS; g++) {
            half_q6_k(all, rows, p[b].groups + g, g, 0, in + b, stride);
            half_q6_k(all, rows, p[b].groups + g, g, 4, in + b, stride);
        }
        floats d = f_half(p[b].d);
        ROWS total[r] = f_add(total[r], f_mul(f_mul(d, f_set(in[r * stride + b].d)), f_of(all[r])));
    }
    ROWS f_store(out + r * out_stride, total[r]);
}

/* Four rows of `a` times n rows of `b`: sums of every 16th number, a row of 16 sums for each pair. */
TILE_FN void rows_4(float sums[ROWS_TOGETHER][PANEL][PANEL], const size_t at, const uint16_t *a, size_t a_stride,
                    const uint16_t *b, size_t b_stride, const int n, size_t k) {
    floats sum[4][ROWS_TOGETHER];
    UNROLLED for (int i = 0; i < 4; i++) UNROLLED for (int j = 0; j < n; j++) sum[i][j] = f_zero();
    for (size_t x = 0; x < k; x += PANEL) {
        floats y[ROWS_TOGETHER];
        UNROLLED for (int j = 0; j < n; j++) y[j] = f_half(b + (size_t)j * b_stride + x);
        UNROLLED for (int i = 0; i < 4; i++) {
            floats key = f_half(a + (size_t)i * a_stride + x);
            UNROLLED for (int j = 0; j < n; j++) sum[i][j] = f_fused(key, y[j], sum[i][j]);
        }
    }
    UNROLLED for (int i = 0; i < 4; i++) UNROLLED for (int j = 0; j < n; j++) f_store(sums[j][at + (size_t)i], sum[i][j]);
}

TILE_FN void rows_n(float *out, size_t out_stride, const uint16_t *a, size_t a_stride, size_t m, const uint16_t *b,
                    size_t b_stride, const int n, size_t k) {
    float sums[ROWS_TOGETHER][PANEL][PANEL];
    size_t i = 0;
    for (; i + 4 <= m; i += 4) rows_4(sums, i, a + i * a_stride, a_stride, b, b_stride, n, k);
    for (; i < m; i++)
        for (int j = 0; j < n; j++) {
            floats sum = f_zero();
            for (size_t x = 0; x < k; x += PANEL)
                sum = f_fused(f_half(a + i * a_stride + x), f_half(b + (size_t)j * b_stride + x), sum);
            f_store(sums[j][i], sum);
        }
    for (int j = 0; j < n; j++) f_sums(out + (size_t)j * out_stride, sums[j], m);
}

#undef ROWS
#undef UNROLLED

/* ---- the functions of panel_set ---------------------------------------------------------------------------------- */

#define CASE(name, n) case n: tile_##name(out, out_stride, first, n, panel, inputs, blocks, stride); break;
#if SET_TILE == 8
#define MORE_CASES(name) CASE(name, 5) CASE(name, 6) CASE(name, 7) CASE(name, 8)
#else
#define MORE_CASES(name)
#endif
#define TILES(name)                                                                                                    \
    ON static void name(float *out, size_t out_stride, bool first, int rows, const void *panel, const void *inputs,    \
                        size_t blocks, size_t stride) {                                                                \
        switch (rows) { CASE(name, 1) CASE(name, 2) CASE(name, 3) CASE(name, 4) MORE_CASES(name) }                     \
    }
TILES(f16)
TILES(q4_0)
TILES(q4_1)
TILES(q5_0)
TILES(q5_1)
TILES(q8_0)
TILES(q4_k)
TILES(q5_k)
TILES(q6_k)

ON static void rows(float *out, size_t out_stride, const uint16_t *a, size_t a_stride, size_t m, const uint16_t *b,
                    size_t b_stride, size_t n, size_t k) {
    switch (n) {
    case 1: rows_n(out, out_stride, a, a_stride, m, b, b_stride, 1, k); break;
    case 2: rows_n(out, out_stride, a, a_stride, m, b, b_stride, 2, k); break;
    case 3: rows_n(out, out_stride, a, a_stride, m, b, b_stride, 3, k); break;
    default: rows_n(out, out_stride, a, a_stride, m, b, b_stride, 4, k); break;
    }
}

ON static void halves(float *out, const uint8_t *in, size_t n) {
    size_t i = 0;
    for (; i + PANEL <= n; i += PANEL) f_store(out + i, f_half((const uint16_t *)(in + 2 * i)));
    if (i < n) {
        uint16_t rest[PANEL] = {0};
        float last[PANEL];
        memcpy(rest, in + 2 * i, 2 * (n - i));
        f_store(last, f_half(rest));
        memcpy(out + i, last, (n - i) * sizeof *out);
    }
}
