// All layers of a decoder for the new tokens of each text, within one parallel region: with few texts, going back to Python
// between two operations costs as much as the operations do.
//
// The decoder is Llama's: norm, grouped-query attention with rotary halves, norm, gated feed-forward. Every number is
// rounded where the operations one by one would round it.

#include <omp.h>
#include <string.h>

#include "attention.h"
#include "matrix.h"
#include "rows.h"

namespace {

constexpr long MATRICES = 7, WORDS = 6, FIRST = 4;  // of a layer; of a matrix; before the first one
constexpr long ROOM = 32;                           // rows that a product wants room for
constexpr long PART = 16;                           // registers of a gate that a thread takes at once
enum { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN };

// A layer: both norms, where its keys and values lie, and its matrices, each an address and what `Matrix` holds.
struct Layer {
  const bf16 *before, *between;
  bf16 *keys, *values;
  Matrix matrix[MATRICES];

  explicit Layer(const int64_t* words) {
    before = (const bf16*)words[0], between = (const bf16*)words[1];
    keys = (bf16*)words[2], values = (bf16*)words[3];
    for (long i = 0; i < MATRICES; i++) {
      const int64_t* w = words + FIRST + i * WORDS;
      matrix[i] = {(const void*)w[0], (const void*)w[1], (long)w[2], (long)w[3], (long)w[4], (long)w[5]};
    }
  }
};

}  // namespace

extern "C" {

// x (texts, tokens, width) becomes the hidden states behind the last layer, not yet normed. layers: 4 + 7 * 6 words each.
// cosine and sine: (texts, tokens, size / 2). lengths: tokens that each text holds before these. strides: numbers from one
// text, head and token of the cache to the next. scratch: for as many rows as tokens of all texts, at least 32, a row's
// normed state, projections, heads and both gates, and behind them what the widest product lays out.
WITH_BF16 void decode_layers(const int64_t* layers, long count, bf16* x, const bf16* cosine, const bf16* sine,
                             const int64_t* lengths, const int64_t* strides, long texts, long tokens, long heads,
                             long kv_heads, long size, long width, long inner, float scale, float eps, bf16* scratch) {
  const long all = texts * tokens, rows = all < ROOM ? ROOM : all;
  const long share = heads / kv_heads, whole = (heads + 2 * kv_heads) * size;
  bf16 *normed = scratch, *projected = normed + rows * width, *seen = projected + rows * (whole > width ? whole : width);
  bf16 *gate = seen + rows * heads * size, *up = gate + rows * inner, *laid = up + rows * inner;
  const long even = texts * kv_heads / (TURNS_A_THREAD * omp_get_max_threads()), turn = even < 1 ? 1 : even;
  const long by_text = strides[0], by_head = strides[1], by_token = strides[2];
#pragma omp parallel
  {
    Room room;
    for (long l = 0; l < count; l++) {
      const Layer layer(layers + l * (FIRST + MATRICES * WORDS));
      const Matrix* m = layer.matrix;
      if (l == 0) {
#pragma omp for schedule(static)
        for (long b = 0; b < all; b++) norm_row(x + b * width, layer.before, normed + b * width, width, eps, 0.0f);
      }
      multiply_rows(normed, width, m[QUERY], projected, whole, all, laid);
      multiply_rows(normed, width, m[KEY], projected + heads * size, whole, all, laid);
      multiply_rows(normed, width, m[VALUE], projected + (heads + kv_heads) * size, whole, all, laid);
#pragma omp barrier
#pragma omp for schedule(dynamic, turn) collapse(2)
      for (long b = 0; b < texts; b++)
        for (long h = 0; h < kv_heads; h++) {
          const long place = b * by_text + h * by_head;
          bf16 *keys = layer.keys + place, *values = layer.values + place;
          for (long r = b * tokens; r < (b + 1) * tokens; r++) {
            bf16* own = projected + r * whole;
            const bf16 *c = cosine + r * size / 2, *s = sine + r * size / 2;
            bf16* queries = own + h * share * size;
            for (long i = 0; i < share; i++) turn_head(queries + i * size, c, s, queries + i * size, size / 2);
            const long last = lengths[b] + r - b * tokens;
            turn_head(own + (heads + h) * size, c, s, keys + last * by_token, size / 2);
            memcpy(values + last * by_token, own + (heads + kv_heads + h) * size, size * sizeof(bf16));
            const bf16* next = h + 1 < kv_heads ? keys + by_head : b + 1 < texts ? layer.keys + (b + 1) * by_text : nullptr;
            attend_rows(queries, keys, by_token, values, by_token, last + 1, r + 1 < (b + 1) * tokens ? nullptr : next,
                        seen + (r * heads + h * share) * size, share, size, size, scale, 0.0f, room);
          }
        }
      multiply_rows(seen, heads * size, m[OUT], projected, width, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        add_row(x + b * width, projected + b * width, width);
        norm_row(x + b * width, layer.between, normed + b * width, width, eps, 0.0f);
      }
      multiply_rows(normed, width, m[GATE], gate, inner, all, laid);
      multiply_rows(normed, width, m[UP], up, inner, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long i = 0; i < all * inner; i += LANES * PART)
        gate_row(gate + i, up + i, gate + i, all * inner - i < LANES * PART ? all * inner - i : LANES * PART);
      multiply_rows(gate, inner, m[DOWN], projected, width, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        add_row(x + b * width, projected + b * width, width);
        if (l + 1 == count) continue;
        const bf16* next = (const bf16*)layers[(l + 1) * (FIRST + MATRICES * WORDS)];
        norm_row(x + b * width, next, normed + b * width, width, eps, 0.0f);
      }
    }
  }
}

}  // extern "C"
