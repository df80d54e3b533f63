// The feed-forward of a layer for a few or many rows, without gradients: experts of which each row meets a few, one that
// all rows meet, or both.

#pragma once

#include <stdint.h>

#include <vector>

#include "alone.h"

// Packed matrices of a gated feed-forward: gate and up (inner, width), down (width, inner).
struct Gated {
  const bf16 *gate, *up, *down;
};

// What a layer has of it, as it is told in whole numbers.
struct Feed {
  const double* router;  // (width, places), places a multiple of 16: one column for each expert
  const float* bias;     // of the experts' rank, or null
  const Gated* own;      // the experts, each of `inner`
  int64_t experts, choices, groups, kept_groups, by_sigmoid, normalised, inner;
  double factor;  // of all shares
  Gated common;   // what all rows meet, of `common_inner`; null if there is none
  int64_t common_inner;
};

// The experts of rows x (rows, width) and their shares, each (rows, choices), the best first; and unless that is null what
// all experts were given (rows, experts). Of the rows from the first to before the last.
void choose_experts(const Feed& feed, const bf16* x, long first, long last, long width, int64_t* chosen, float* shares,
                    float* scores);

// Each thread of a parallel region makes one, for so many rows of one width, and all use it alike. The scratch is shared.
class FeedForward {
 public:
  // scratch: for each row and choice the widths of the stream and of an expert twice and one share and choice; for each row
  // the width of the stream and of what all meet; all of them for 32 rows more and in multiples of 32.
  FeedForward(long rows, long choices, long width, long inner, long common_inner, bf16* scratch);

  // Of rows x (rows, width), which are read up to a multiple of 16. Chooses, unless choices and shares are given. When the
  // threads come back, `row` says what came out.
  void run(const Feed& feed, const bf16* x, const int64_t* chosen, const float* shares);

  // One row's sum over its experts and what all rows meet, each rounded as if it were made alone.
  void row(long number, bf16* y) const;

 private:
  // Rows that meet the same matrices; what they become on the way lies `inner` numbers apart.
  struct Group {
    const bf16* x;
    Gated by;
    bf16 *held, *out;
    long rows, inner;
  };

  void sort();
  void gather(const bf16* x);
  void list(const bf16* x);
  void multiply(bool down);

  const long rows_, width_;
  int64_t* own_chosen_;
  float* own_shares_;
  bf16 *gathered_, *inner_, *out_, *common_inner_, *common_out_;
  const Feed* feed_ = nullptr;
  const int64_t* chosen_ = nullptr;
  const float* shares_ = nullptr;
  std::vector<long> place_, end_;  // of each choice its row among those of all experts; where an expert's rows end
  std::vector<Group> groups_;
  std::vector<bf16> up_;
};
