// All layers of a decoder with latent attention for the new tokens of each text, within one parallel region, as decode.cpp
// does it for Llama's.
//
// A layer: norm, latent attention in its absorbed form, norm, and a feed-forward that is dense, a mixture of experts, or
// such a mixture beside experts that all tokens meet. Every number is rounded where the operations one by one round it.

#include <omp.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "attention.h"
#include "experts.h"
#include "latents.h"
#include "matrix.h"
#include "rows.h"
#include "turned.h"

namespace {

constexpr long ROOM = 32;  // rows that a product wants room for, and multiples of which buffers hold

// Of a network and a call, as they are told in whole numbers.
struct Sizes {
  int64_t layers, texts, tokens, width, heads, still, turning, depth, rank, query_rank, neighbours, choices, inner,
      common_inner;
};

struct Layer {
  const bf16 *before, *between, *query_norm, *latent_norm;
  bf16* held;  // the cache's latents
  const bf16 *keys, *values;  // packed: of each head (rank, still) and (depth, rank)
  const bf16 *query_bias, *latent_bias, *out_bias;  // null for none
  int64_t matrix[4][6];
  Feed feed;
};
enum { QUERY, QUERY_UP, LATENT, OUT };

Matrix matrix_of(const int64_t* w) {
  return {(const void*)w[0], (const float*)w[1], (long)w[2], (long)w[3], (long)w[4], (long)w[5]};
}

WITH_BF16 inline void add_bias(bf16* x, const bf16* bias, long width) {
  if (bias) add_row(x, bias, width);
}

// Each head's own product of all rows: x (rows, heads, k), so far apart, to y (rows, heads, n). The threads share it.
void multiply_heads(const bf16* x, long x_row, long x_head, const bf16* packed, bf16* y, long y_row, long y_head, long rows,
                    long heads, long n, long k) {
  Alone alone;
#pragma omp for schedule(static) collapse(2) nowait
  for (long h = 0; h < heads; h++)
    for (long i = 0; i < rows; i += BLOCK_ROWS)
      alone.multiply(x + i * x_row + h * x_head, x_row, std::min(rows - i, BLOCK_ROWS), packed + h * n * k, n, k,
                     y + i * y_row + h * y_head, y_row);
  alone.finish();
}

// Where the cache holds latents: numbers from one text and token to the next.
struct Cache {
  bf16* first;
  long by_text, by_token;
};

// Room for the stretches of all texts, where threads share them: few texts of which one at least is long.
class Parts {
 public:
  long most = 0;  // stretches of a text; 0 where none is shared

  Parts(const int64_t* lengths, long texts, long tokens, long heads, long width, long depth)
      : groups_(up(heads, ABREAST)), size_(Latents::part_size(depth)) {
    const long longest = stretches(*std::max_element(lengths, lengths + texts) + 1);
    if (longest == 1 || tokens > 1 || !Latents::takes(width, depth)) return;
    if (texts * groups_ >= TURNS_A_THREAD * omp_get_max_threads()) return;
    most = longest;
    parts_.resize(texts * groups_ * most * size_);
  }

  float* of(long text, long group, long stretch) { return parts_.data() + ((text * groups_ + group) * most + stretch) * size_; }

 private:
  long groups_, size_;
  std::vector<float> parts_;
};

// q (texts, tokens, heads, width) over each text's latents, of which a token sees those before it and its own, to out
// (texts, tokens, heads, depth). The threads share it.
WITH_TILES void look_at_latents(const bf16* q, const Cache& held, const int64_t* lengths, bf16* out, long texts, long tokens,
                                long heads, long width, long depth, float scale, Parts& parts) {
  const long groups = up(heads, ABREAST);
  const bool tiles = Latents::takes(width, depth);
  Latents latents;
  Room room;
  if (tiles) open_tiles();
  if (parts.most) {
    const long turn = omp_get_num_threads();  // stretches from one that a thread looks at to its next
#pragma omp for schedule(dynamic, 1) collapse(3)
    for (long b = 0; b < texts; b++)
      for (long g = 0; g < groups; g++)
        for (long p = 0; p < parts.most; p++) {
          const long left = lengths[b] + 1 - p * STRETCH, count = std::min(left, STRETCH);
          const bf16* own = held.first + b * held.by_text + p * STRETCH * held.by_token;
          const bf16* following = left > turn * STRETCH ? own + turn * STRETCH * held.by_token : nullptr;
          if (count > 0)
            latents.stretch(q + (b * heads + g * ABREAST) * width, std::min(ABREAST, heads - g * ABREAST), own, held.by_token,
                            count, following, parts.of(b, g, p), width, depth, scale);
        }
#pragma omp for schedule(static) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long g = 0; g < groups; g++)
        Latents::join(parts.of(b, g, 0), stretches(lengths[b] + 1), std::min(ABREAST, heads - g * ABREAST), depth,
                      out + (b * heads + g * ABREAST) * depth);
    close_tiles();
    return;
  }
  const long even = texts * groups / (TURNS_A_THREAD * omp_get_num_threads()), turn = even < 1 ? 1 : even;
#pragma omp for schedule(dynamic, turn) collapse(2)
  for (long b = 0; b < texts; b++)
    for (long g = 0; g < groups; g++)
      for (long t = 0; t < tokens; t++) {
        const long first = (b * tokens + t) * heads + g * ABREAST, share = std::min(ABREAST, heads - g * ABREAST);
        const long count = lengths[b] + t + 1;
        const bf16 *own = held.first + b * held.by_text, *queries = q + first * width;
        const bf16* following = t + 1 < tokens || b + 1 == texts ? nullptr : own + held.by_text;
        if (tiles)
          latents.look(queries, share, own, held.by_token, count, following, out + first * depth, width, depth, scale);
        else
          attend_rows(queries, own, held.by_token, own, held.by_token, count, nullptr, out + first * depth, share, width,
                      depth, scale, 0.0f, room);
      }
  if (tiles) close_tiles();
}

// What a layer's operations hand to one another, and the room that they need.
struct Buffers {
  bf16 *normed, *low, *latent, *queries, *absorbed, *seen, *heads, *projected, *laid, *rest;

  Buffers(const Sizes& s, long rows, bf16* scratch) {
    const auto take = [&](long numbers) {
      bf16* taken = scratch;
      scratch += rows * numbers;
      return taken;
    };
    normed = take(s.width), low = take(s.query_rank), latent = take(s.rank + s.turning);
    queries = take(s.heads * (s.still + s.turning)), absorbed = take(s.heads * (s.rank + s.turning));
    seen = take(s.heads * s.rank), heads = take(s.heads * s.depth), projected = take(s.width);
    laid = take(std::max({s.width, s.query_rank, s.heads * s.depth})), rest = scratch;
  }
};

// One layer's attention, from the normed stream to what is added to it. Each function is called by all threads.
struct Looking {
  const Sizes& s;
  const Buffers& to;
  const bf16 *cosine, *sine;
  const int64_t* lengths;
  long by_text, by_token, all;
  float eps, scale;

  // The queries of all heads, and the latents, as they come from the stream.
  void project(const Layer& layer) const {
    const long whole = s.heads * (s.still + s.turning), wide = s.rank + s.turning;
    multiply_rows(to.normed, s.width, matrix_of(layer.matrix[LATENT]), to.latent, wide, all, to.laid);
    if (!s.query_rank) {
      multiply_rows(to.normed, s.width, matrix_of(layer.matrix[QUERY]), to.queries, whole, all, to.laid);
    } else {
      multiply_rows(to.normed, s.width, matrix_of(layer.matrix[QUERY]), to.low, s.query_rank, all, to.laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        bf16* own = to.low + b * s.query_rank;
        add_bias(own, layer.query_bias, s.query_rank);
        norm_row(own, layer.query_norm, own, s.query_rank, eps, 0.0f);
      }
      multiply_rows(to.low, s.query_rank, matrix_of(layer.matrix[QUERY_UP]), to.queries, whole, all, to.laid);
    }
#pragma omp barrier
  }

  // Latents to where the cache holds them, and the queries to what looks at them.
  void absorb(const Layer& layer) const {
    const long head = s.still + s.turning, wide = s.rank + s.turning, half = s.turning / 2;
    multiply_heads(to.queries, s.heads * head, head, layer.keys, to.absorbed, s.heads * wide, wide, all, s.heads, s.rank,
                   s.still);
#pragma omp for schedule(static)
    for (long b = 0; b < all; b++) {
      const bf16 *c = cosine + b * half, *o = sine + b * half;
      bf16* own = to.latent + b * wide;
      add_bias(own, layer.latent_bias, wide);
      bf16* kept = layer.held + b / s.tokens * by_text + (lengths[b / s.tokens] + b % s.tokens) * by_token;
      norm_row(own, layer.latent_norm, kept, s.rank, eps, 0.0f);
      turn_pairs_of(own + s.rank, c, o, kept + s.rank, half, s.neighbours, false);
      for (long h = 0; h < s.heads; h++)
        turn_pairs_of(to.queries + (b * s.heads + h) * head + s.still, c, o,
                      to.absorbed + (b * s.heads + h) * wide + s.rank, half, s.neighbours, false);
    }
  }

  void look(const Layer& layer, Parts& parts) const {
    look_at_latents(to.absorbed, {layer.held, by_text, by_token}, lengths, to.seen, s.texts, s.tokens, s.heads,
                    s.rank + s.turning, s.rank, scale, parts);
  }

  // Sums of latents to sums of values, and out of all heads.
  void emerge(const Layer& layer) const {
    multiply_heads(to.seen, s.heads * s.rank, s.rank, layer.values, to.heads, s.heads * s.depth, s.depth, all, s.heads,
                   s.depth, s.rank);
#pragma omp barrier
    multiply_rows(to.heads, s.heads * s.depth, matrix_of(layer.matrix[OUT]), to.projected, s.width, all, to.laid);
#pragma omp barrier
  }
};

}  // namespace

extern "C" {

// x (texts, tokens, width) becomes the hidden states behind the last layer, not yet normed. sizes: a `Sizes`; layers: so
// many `Layer`. cosine and sine: (texts, tokens, turning / 2). lengths: tokens that each text holds before these. by_text,
// by_token: numbers from one text and token of the cache to the next. scratch: see `Buffers` and `FeedForward`.
WITH_BF16 void decode_latent(const int64_t* sizes, const int64_t* layers, bf16* x, const bf16* cosine, const bf16* sine,
                             const int64_t* lengths, long by_text, long by_token, float scale, float eps, float latent_eps,
                             bf16* scratch) {
  const Sizes& s = *(const Sizes*)sizes;
  const Layer* all_layers = (const Layer*)layers;
  const long all = s.texts * s.tokens, rows = up(all, ROOM) * ROOM;
  const Buffers to(s, rows, scratch);
  const Looking looking = {s, to, cosine, sine, lengths, by_text, by_token, all, latent_eps, scale};
  Parts parts(lengths, s.texts, s.tokens, s.heads, s.rank + s.turning, s.rank);
#pragma omp parallel
  {
    FeedForward feed(all, s.choices, s.width, s.inner, s.common_inner, to.rest);
#pragma omp for schedule(static)
    for (long b = 0; b < all; b++)
      norm_row(x + b * s.width, all_layers[0].before, to.normed + b * s.width, s.width, eps, 0.0f);
    for (long l = 0; l < s.layers; l++) {
      const Layer& layer = all_layers[l];
      looking.project(layer);
      looking.absorb(layer);
      looking.look(layer, parts);
      looking.emerge(layer);
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        add_bias(to.projected + b * s.width, layer.out_bias, s.width);
        add_row(x + b * s.width, to.projected + b * s.width, s.width);
        norm_row(x + b * s.width, layer.between, to.normed + b * s.width, s.width, eps, 0.0f);
      }
      feed.run(layer.feed, to.normed, nullptr, nullptr);
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        feed.row(b, to.projected + b * s.width);
        add_row(x + b * s.width, to.projected + b * s.width, s.width);
        if (l + 1 < s.layers)
          norm_row(x + b * s.width, all_layers[l + 1].before, to.normed + b * s.width, s.width, eps, 0.0f);
      }
    }
  }
}

// Each head's own product of rows, see `multiply_heads`; rows are copied to `laid`, (rows, heads, k) with rows filled up to
// 32, where a product may read beyond them.
void head_products(const bf16* x, long x_row, long x_head, const bf16* packed, bf16* y, long y_row, long y_head, long rows,
                   long heads, long n, long k, bf16* laid) {
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long b = 0; b < rows; b++)
      for (long h = 0; h < heads; h++) memcpy(laid + (b * heads + h) * k, x + b * x_row + h * x_head, k * sizeof(bf16));
    multiply_heads(laid, heads * k, k, packed, y, y_row, y_head, rows, heads, n, k);
  }
}

// See `look_at_latents`; lengths: tokens that each text holds before these, which the cache holds, too.
void look_latent(const bf16* q, bf16* held, long by_text, long by_token, const int64_t* lengths, bf16* out, long texts,
                 long tokens, long heads, long width, long depth, float scale) {
  Parts parts(lengths, texts, tokens, heads, width, depth);
#pragma omp parallel
  look_at_latents(q, {held, by_text, by_token}, lengths, out, texts, tokens, heads, width, depth, scale, parts);
}

}  // extern "C"
