// The feed-forward of a layer without gradients. Rows are gathered by expert once; then threads take turns of an expert's
// columns, all experts in one loop, so that nobody waits between two of them: first gates, then sums of their outputs.
//
// Scores are summed in fp64, as `model/moe.py` does without gradients: a choice between equals must not hang on the order.

#include "experts.h"

#include <math.h>
#include <omp.h>

#include <algorithm>

#include "rows.h"

namespace {

constexpr long TOGETHER = 4, EIGHT = 8;      // rows whose scores are summed at once; fp64 numbers of a register
constexpr long PLACES = 2 * EIGHT;           // experts, likewise
constexpr long TURNS = 8;                    // of a thread, at least, where there are columns enough
constexpr long STRIDE = 4 * LANES;           // numbers of a sum that registers hold

typedef double Eight __attribute__((vector_size(64)));

// What one thread needs to choose experts.
struct Choosing {
  std::vector<double> wide, scores, rank, best;
  std::vector<char> taken, kept;

  Choosing(const Feed& f, long width)
      : wide(TOGETHER * width), scores(TOGETHER * up(f.experts, PLACES) * PLACES), rank(f.experts), best(f.groups),
        taken(f.experts), kept(f.groups) {}
};

// Scores of up to 4 rows: (rows, places). A product and its sum are rounded once, as one instruction does it.
__attribute__((optimize("fp-contract=fast"))) WITH_BF16 void score(const Feed& f, const bf16* x, long rows, long width,
                                                                   Choosing& room) {
  const long places = up(f.experts, PLACES) * PLACES;
  double *wide = room.wide.data(), *scores = room.scores.data();
  for (long r = 0; r < TOGETHER; r++) {
    const bf16* from = x + (r < rows ? r : 0) * width;
    for (long i = 0; i < width; i += LANES) {
      alignas(64) float numbers[LANES];
      _mm512_store_ps(numbers, widen(from + i));
      for (long j = 0; j < LANES; j++) wide[r * width + i + j] = numbers[j];
    }
  }
  for (long e = 0; e < places; e += PLACES) {
    Eight sum[TOGETHER][2] = {};
    for (long i = 0; i < width; i++) {
      Eight weight[2];
      memcpy(weight, f.router + i * places + e, sizeof(weight));
#pragma GCC unroll 4
      for (long r = 0; r < TOGETHER; r++) {
        sum[r][0] += wide[r * width + i] * weight[0];
        sum[r][1] += wide[r * width + i] * weight[1];
      }
    }
    for (long r = 0; r < TOGETHER; r++) memcpy(scores + r * places + e, sum[r], sizeof(sum[r]));
  }
}

// The best of `count` that is not taken, which the first of equals is; one that is no number is better than none.
long best_of(const double* rank, const std::vector<char>& taken, long from, long count) {
  long best = -1;
  for (long i = from; i < from + count; i++)
    if (!taken[i] && (best < 0 || rank[i] > rank[best])) best = i;
  return best;
}

// Chances of a row's experts from their logits, in place.
void squash(const Feed& f, double* scores) {
  double highest = scores[0], total = 0;
  for (long e = 1; e < f.experts; e++) highest = std::max(highest, scores[e]);
  for (long e = 0; e < f.experts; e++) {
    scores[e] = f.by_sigmoid ? 1 / (1 + exp(-scores[e])) : exp(scores[e] - highest);
    total += scores[e];
  }
  for (long e = 0; e < f.experts && !f.by_sigmoid; e++) scores[e] /= total;
}

// Experts of groups that are left out are taken from the start.
void leave_groups_out(const Feed& f, Choosing& room) {
  const long size = f.experts / f.groups;
  const double* rank = room.rank.data();
  std::vector<double>& best = room.best;
  std::vector<char>&taken = room.taken, &kept = room.kept;
  for (long g = 0; g < f.groups; g++) {
    const long first = std::max(best_of(rank, taken, g * size, size), g * size);
    best[g] = rank[first];
    if (!f.bias) continue;
    taken[first] = 1;
    const long second = best_of(rank, taken, g * size, size);
    best[g] += second < 0 ? 0 : rank[second];
    taken[first] = 0;
  }
  std::fill(kept.begin(), kept.end(), 0);
  for (long i = 0; i < f.kept_groups; i++) kept[std::max(best_of(best.data(), kept, 0, f.groups), 0l)] = 1;
  for (long e = 0; e < f.experts; e++) taken[e] = !kept[e / size];
}

void choose(const Feed& f, double* scores, Choosing& room, int64_t* chosen, float* shares, float* told) {
  squash(f, scores);
  for (long e = 0; e < f.experts && told; e++) told[e] = scores[e];
  std::vector<double>& rank = room.rank;
  std::vector<char>& taken = room.taken;
  for (long e = 0; e < f.experts; e++) rank[e] = scores[e] + (f.bias ? f.bias[e] : 0), taken[e] = 0;
  if (f.groups > 1) leave_groups_out(f, room);
  double total = 0;
  for (long c = 0; c < f.choices; c++) {
    chosen[c] = std::max(best_of(rank.data(), taken, 0, f.experts), 0l);
    taken[chosen[c]] = 1;
    total += scores[chosen[c]];
  }
  for (long c = 0; c < f.choices; c++) {
    const double share = scores[chosen[c]];
    shares[c] = (f.normalised ? share / (total + 1e-20) : share) * f.factor;
  }
}

long filled(long rows) { return up(rows, BLOCK_ROWS) * BLOCK_ROWS + BLOCK_ROWS; }

}  // namespace

void choose_experts(const Feed& f, const bf16* x, long first, long last, long width, int64_t* chosen, float* shares,
                    float* scores) {
  const long places = up(f.experts, PLACES) * PLACES;
  Choosing room(f, width);
  for (long b = first; b < last; b += TOGETHER) {
    const long rows = std::min(TOGETHER, last - b);
    score(f, x + b * width, rows, width, room);
    for (long r = 0; r < rows; r++)
      choose(f, room.scores.data() + r * places, room, chosen + (b + r) * f.choices, shares + (b + r) * f.choices,
             scores ? scores + (b + r) * f.experts : nullptr);
  }
}

FeedForward::FeedForward(long rows, long choices, long width, long inner, long common_inner, bf16* scratch)
    : rows_(rows), width_(width) {
  const long all = filled(rows * choices);
  const auto take = [&](long numbers) {
    bf16* taken = scratch;
    scratch += up(numbers, 2 * LANES) * 2 * LANES;
    return taken;
  };
  gathered_ = take(all * width), out_ = take(all * width), inner_ = take(all * inner);
  common_inner_ = take(filled(rows) * common_inner), common_out_ = take(filled(rows) * width);
  own_chosen_ = (int64_t*)take(all * sizeof(int64_t) / sizeof(bf16));
  own_shares_ = (float*)take(all * sizeof(float) / sizeof(bf16));
}

void FeedForward::sort() {
  const long experts = feed_->experts, choices = rows_ * feed_->choices;
  place_.resize(choices);
  end_.assign(experts, 0);
  for (long i = 0; i < choices; i++) end_[chosen_[i]]++;
  long from = 0;
  for (long e = 0; e < experts; e++) from += end_[e], end_[e] = from - end_[e];
  for (long i = 0; i < choices; i++) place_[i] = end_[chosen_[i]]++;
}

void FeedForward::gather(const bf16* x) {
#pragma omp for schedule(static)
  for (long b = 0; b < rows_; b++)
    for (long c = 0; c < feed_->choices; c++)
      memcpy(gathered_ + place_[b * feed_->choices + c] * width_, x + b * width_, width_ * sizeof(bf16));
}

void FeedForward::list(const bf16* x) {
  groups_.clear();
  if (feed_->common.gate)
    groups_.push_back({x, feed_->common, common_inner_, common_out_, rows_, feed_->common_inner});
  if (!feed_->router) return;
  for (long e = 0, first = 0; e < feed_->experts; first = end_[e++])
    if (end_[e] > first)
      groups_.push_back({gathered_ + first * width_, feed_->own[e], inner_ + first * feed_->inner, out_ + first * width_,
                         end_[e] - first, feed_->inner});
}

// Gates, or with `down` what becomes of them. The threads have done it when they come back.
void FeedForward::multiply(bool down) {
  const long count = groups_.size(), fewest = TURNS * omp_get_num_threads();
  const long turns = count ? up(fewest, count) : 0;  // of each group
  Alone alone;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (long g = 0; g < count; g++)
    for (long t = 0; t < turns; t++) {
      const Group& group = groups_[g];
      const long n = down ? width_ : group.inner, k = down ? group.inner : width_;
      const long each = up(up(n, COLUMNS), turns) * COLUMNS, from = t * each, columns = std::min(each, n - from);
      if (columns <= 0) continue;
      if (down) {
        alone.multiply(group.held, k, group.rows, group.by.down + from * k, columns, k, group.out + from, n);
        continue;
      }
      if (Alone::by_tiles(k)) {
        alone.multiply_gated(group.x, k, group.rows, group.by.gate + from * k, group.by.up + from * k, columns, k,
                             group.held + from, n);
        continue;
      }
      up_.resize(BLOCK_ROWS * each);
      for (long i = 0; i < group.rows; i += BLOCK_ROWS) {
        const long rows = std::min(BLOCK_ROWS, group.rows - i);
        bf16* held = group.held + i * n + from;
        alone.multiply(group.x + i * k, k, rows, group.by.gate + from * k, columns, k, held, n);
        alone.multiply(group.x + i * k, k, rows, group.by.up + from * k, columns, k, up_.data(), each);
        alone.finish();
        for (long r = 0; r < rows; r++) gate_row(held + r * n, up_.data() + r * each, held + r * n, columns);
      }
    }
  alone.finish();
#pragma omp barrier
}

void FeedForward::run(const Feed& feed, const bf16* x, const int64_t* chosen, const float* shares) {
  feed_ = &feed, chosen_ = chosen ? chosen : own_chosen_, shares_ = chosen ? shares : own_shares_;
  if (feed.router) {
    if (!chosen) {
#pragma omp for schedule(static)
      for (long b = 0; b < rows_; b += 2 * TOGETHER)
        choose_experts(feed, x, b, std::min(b + 2 * TOGETHER, rows_), width_, own_chosen_, own_shares_, nullptr);
    }
    sort();
    gather(x);
  }
  list(x);
  multiply(false);
  multiply(true);
}

WITH_BF16 void FeedForward::row(long number, bf16* y) const {
  const bf16* common = common_out_ + number * width_;
  if (!feed_->router) {
    memcpy(y, common, width_ * sizeof(bf16));
    return;
  }
  const long choices = feed_->choices;
  for (long i = 0; i < width_; i += LANES) {
    __m512 sum = _mm512_setzero_ps();
    for (long c = 0; c < choices; c++) {
      const bf16* from = out_ + place_[number * choices + c] * width_;
      sum = _mm512_fmadd_ps(widen(from + i), _mm512_set1_ps(shares_[number * choices + c]), sum);
    }
    narrow(y + i, sum);
    if (feed_->common.gate) narrow(y + i, _mm512_add_ps(widen(y + i), widen(common + i)));
  }
}

extern "C" {

// See `choose_experts`. `words` hold a `Feed`.
void choose_rows(const int64_t* words, const bf16* x, int64_t* chosen, float* shares, float* scores, long rows, long width) {
#pragma omp parallel for schedule(static)
  for (long b = 0; b < rows; b += BLOCK_ROWS)
    choose_experts(*(const Feed*)words, x, b, std::min(b + BLOCK_ROWS, rows), width, chosen, shares, scores);
}

// y (rows, width): each row's sum over its experts of share times what it becomes there, and what it becomes by what all rows
// meet, on top of the row beside unless that is null. x (rows, width), read up to a multiple of 16 rows if there is such a thing; chosen and shares (rows, choices);
// scratch as `FeedForward` wants it. `words` hold a `Feed`.
void mix_packed(const int64_t* words, const bf16* x, const int64_t* chosen, const float* shares, const bf16* beside, bf16* y,
                long rows, long width, bf16* scratch) {
  const Feed& feed = *(const Feed*)words;
#pragma omp parallel
  {
    FeedForward forward(rows, feed.choices, width, feed.inner, feed.common_inner, scratch);
    forward.run(feed, x, chosen, shares);
#pragma omp for schedule(static)
    for (long b = 0; b < rows; b++) {
      forward.row(b, y + b * width);
      if (beside) add_row(y + b * width, beside + b * width, width);
    }
  }
}

}  // extern "C"
