// What attention within texts is told, and how the keys that a text sees are laid out in strips of 32.

#pragma once

#include <stdlib.h>

#include <vector>

#include "blocks.h"
#include "looks.h"

namespace {

constexpr long QUERIES = 128, STRIPS = 8;  // of a block: queries, and strips of 32 keys

// `count` of a tensor's tokens from the first on, one head of each.
inline RowsOf rows_of(const Tokens& x, long first, long count, long head) {
  return {x.at + first * x.row + head * x.head, x.row, count, x.width};
}

// 32 keys as they were laid out: from `place` on, `count` of them real. `first`: the first one's number among the text's
// own keys, -1 where all of its queries see them.
struct Strip {
  long place, count, first;
};

// Memory that starts where a line of the cache does.
class Room {
 public:
  explicit Room(long bytes) : at_((char*)aligned_alloc(64, (bytes + 63) / 64 * 64)), end_(at_ + (bytes + 63) / 64 * 64) {}
  ~Room() { free(at_); }
  Room(const Room&) = delete;
  template <typename T>
  T* take(long numbers) {
    T* taken = (T*)(at_ + used_);
    used_ += (numbers * sizeof(T) + 63) / 64 * 64;
    if (at_ == nullptr || at_ + used_ > end_) abort();
    return taken;
  }
  void drop() { used_ = 0; }

 private:
  char *at_, *end_;
  long used_ = 0;
};

inline void add_strips(std::vector<Strip>& strips, long place, long keys, bool own) {
  for (long s = 0; s < keys; s += DEEP) strips.push_back({place + s, keys - s < DEEP ? keys - s : DEEP, own ? s : -1});
}

// The first of a block's columns whose query may see a strip; the block's first query is number `block` of its text.
inline long first_column(const Strip& strip, long block) { return strip.first > block ? strip.first - block : 0; }

// Which of 16 queries, the first of them number `query` of its text, see key `i` of a strip.
inline __mmask16 seen(const Strip& strip, long i, long query) {
  if (i >= strip.count) return 0;
  const long late = strip.first < 0 ? 0 : strip.first + i - query;
  return late <= 0 ? 0xffff : late >= LANES ? 0 : (__mmask16)(0xffff << late);
}

inline bool seen_wholly(const Strip& strip, long query) {
  return strip.count == DEEP && strip.first + DEEP - 1 <= query;
}

// How many of `count` strips, in the order of their keys, a pair of 16 columns from `column` on sees any of.
inline long strips_of(const Strip* strips, long count, long block, long column) {
  long s = 0;
  while (s < count && first_column(strips[s], block) <= column) s++;
  return s;
}

inline long smaller(long a, long b) { return a < b ? a : b; }

}  // namespace
