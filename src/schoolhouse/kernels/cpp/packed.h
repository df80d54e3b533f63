// How weights lie that were packed for a product: panels of 16 columns, pairs of neighbours along k side by side, as both
// AVX-512's dot products and AMX's tiles want them.

#pragma once

#include "lanes.h"

namespace {

constexpr long PANEL = 16, COLUMNS = 32;
constexpr long CACHED = 1 << 19;  // numbers that stay in the second cache

inline long up(long n, long d) { return (n + d - 1) / d; }

// Two neighbours along k of each of 16 columns.
WITH_BF16 inline __m512bh pairs_of(const bf16* weight) { return (__m512bh)_mm512_loadu_si512(weight); }

}  // namespace
