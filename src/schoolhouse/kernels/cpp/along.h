// Products of tiles that vector work takes along, a step in each of its turns: the two units work side by side.

#pragma once

#include "blocks.h"

namespace {

// Sums over 32 * steps numbers of `rows` rows, a multiple of 32, and 32 columns; on top of what is there if `add`.
struct Task {
  Left a;
  Right b;
  long rows, steps;
  float* c;
  long c_row;
  bool add;
};

class Along {
 public:
  void add(const Task& task) {
    tasks_[count_++] = task;
    left_ += tiles_allowed ? task.rows / DEEP * task.steps : 1;
  }

  // From now on so many turns come.
  void share_out(long turns) { every_ = left_ ? turns / left_ : 0; }

  WITH_TILES void turn() {
    if (at_ < count_ && ++turn_ >= every_) turn_ = 0, step();
  }

  // The first so many products are done.
  WITH_TILES void until(long tasks) {
    while (at_ < tasks && at_ < count_) step();
  }

  WITH_TILES void finish() { until(count_); }

 private:
  WITH_TILES void step() {
    const Task& t = tasks_[at_];
    if (!tiles_allowed) {
      multiply_lanes(t.a, t.b, t.rows, DEEP, t.steps, t.c, t.c_row, t.add);
      at_++;
      return;
    }
    __asm__ volatile("" ::: "memory");  // what tiles read has been written
    float *upper = t.c + row_ * t.c_row, *lower = upper + TILE * t.c_row;
    if (step_ == 0 && t.add) {
      _tile_loadd(0, upper, t.c_row * 4);
      _tile_loadd(1, upper + TILE, t.c_row * 4);
      _tile_loadd(2, lower, t.c_row * 4);
      _tile_loadd(3, lower + TILE, t.c_row * 4);
    } else if (step_ == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const bf16 *left = t.a.at + row_ * t.a.row + step_ * t.a.step, *right = t.b.at + step_ * TILE * t.b.row;
    _tile_loadd(4, left, t.a.row * 2);
    _tile_loadd(6, right, t.b.row * 2);
    _tile_loadd(7, right + TILE * BOTH, t.b.row * 2);
    _tile_loadd(5, left + TILE * t.a.row, t.a.row * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (++step_ < t.steps) return;
    _tile_stored(0, upper, t.c_row * 4);
    _tile_stored(1, upper + TILE, t.c_row * 4);
    _tile_stored(2, lower, t.c_row * 4);
    _tile_stored(3, lower + TILE, t.c_row * 4);
    step_ = 0, row_ += DEEP;
    if (row_ >= t.rows) row_ = 0, at_++;
  }

  Task tasks_[2];
  long count_ = 0, at_ = 0, row_ = 0, step_ = 0, left_ = 0, every_ = 0, turn_ = 0;
};

}  // namespace
