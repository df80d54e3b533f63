// A Llama-like decoder's layers as they are told in whole numbers, and the stream that goes through them.

#pragma once

#include <omp.h>
#include <string.h>

#include <vector>

#include "matrix.h"
#include "rows.h"

namespace {

constexpr long MATRICES = 7, WORDS = 6, FIRST = 6;  // of a layer; of a matrix; before the first one
constexpr long ROOM = 32;                           // rows that a product wants room for
constexpr long PART = 16;                           // registers of a gate that a thread takes at once
constexpr long FEW_ROWS = 4;                        // of which each thread keeps a stream of its own
enum { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN };

// Where keys or values of a layer lie: bf16 numbers, or int8 codes and their scales. Of scales those of a text and head lie
// together.
struct Store {
  void* rows;
  bf16* scales;

  bf16* numbers(long place) const { return (bf16*)rows + place; }
  int8_t* codes(long place) const { return (int8_t*)rows + place; }
};

// A layer: both norms, where its keys and values lie, and its matrices, each an address and what `Matrix` holds.
struct Layer {
  const bf16 *before, *between;
  Store keys, values;
  Matrix matrix[MATRICES];

  Layer(const int64_t* all, long number) {
    const int64_t* words = all + number * (FIRST + MATRICES * WORDS);
    before = (const bf16*)words[0], between = (const bf16*)words[1];
    keys = {(void*)words[2], (bf16*)words[4]}, values = {(void*)words[3], (bf16*)words[5]};
    for (long i = 0; i < MATRICES; i++) {
      const int64_t* w = words + FIRST + i * WORDS;
      matrix[i] = {(const void*)w[0], (const void*)w[1], (long)w[2], (long)w[3], (long)w[4], (long)w[5]};
    }
  }
};

// Moves these rows, their places in rising order, to the front.
inline void keep_rows(bf16* x, long width, const int64_t* places, long count) {
  for (long i = 0; i < count; i++) memmove(x + i * width, x + places[i] * width, width * sizeof(bf16));
}

// The stream of all rows with what is read of it next. Of few rows each thread keeps one of its own: doing the same twice
// takes less time than meeting the other threads. Each function is called by all threads of a region.
class Stream {
 public:
  bf16* normed;

  Stream(bf16* x, bf16* normed, long rows, long width, float eps)
      : normed(normed), x_(x), all_(x), rows_(rows), width_(width), eps_(eps), alone_(rows <= FEW_ROWS) {
    if (!alone_) return;
    own_.resize((FEW_ROWS + ROOM) * width), x_ = own_.data(), this->normed = x_ + FEW_ROWS * width;
    memcpy(x_, x, rows * width * sizeof(bf16));
  }

  // Adds these rows to the stream, if there are any, and norms the sums by a weight, if there is one.
  WITH_BF16 void add(const bf16* y, const bf16* weight) {
    if (alone_) return add_some(y, weight, 0, rows_);
#pragma omp for schedule(static)
    for (long b = 0; b < rows_; b++) add_some(y, weight, b, b + 1);
  }

  // gate * sigmoid(gate) * up.
  WITH_BF16 const bf16* gated(bf16* gate, const bf16* up, long rows, long inner) {
    const long count = rows * inner, part = LANES * PART;
    if (alone_) {
      gated_.resize(ROOM * inner);
      gate_row(gate, up, gated_.data(), count);
      return gated_.data();
    }
#pragma omp for schedule(static)
    for (long i = 0; i < count; i += part) gate_row(gate + i, up + i, gate + i, count - i < part ? count - i : part);
    return gate;
  }

  // Goes on with these rows alone, their places in rising order.
  void keep(const int64_t* places, long count) {
    if (alone_) keep_rows(x_, width_, places, count);
#pragma omp barrier
    if (!alone_ && omp_get_thread_num() == 0) keep_rows(x_, width_, places, count);
#pragma omp barrier
    rows_ = count;
  }

  // Hands the stream back to where it came from.
  void leave() {
    if (alone_ && omp_get_thread_num() == 0) memcpy(all_, x_, rows_ * width_ * sizeof(bf16));
  }

 private:
  WITH_BF16 void add_some(const bf16* y, const bf16* weight, long first, long last) {
    for (long b = first; b < last; b++) {
      if (y) add_row(x_ + b * width_, y + b * width_, width_);
      if (weight) norm_row(x_ + b * width_, weight, normed + b * width_, width_, eps_, 0.0f);
    }
  }

  bf16 *x_, *const all_;
  long rows_;
  const long width_;
  const float eps_;
  const bool alone_;
  std::vector<bf16> own_, gated_;
};

}  // namespace
