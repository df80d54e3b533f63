// Small operations on rows of bf16 numbers, each in one pass over memory and summed in fp32.

#include "rows.h"

namespace {

constexpr long SMALL = 1 << 14, PART = 1 << 10;  // numbers below which a second thread costs too much; what one takes

}  // namespace

extern "C" {

// y = x / sqrt(mean(x^2) + eps) * weight, row by row; width is a multiple of 16.
WITH_BF16 void rms_norm(const bf16* x, const bf16* weight, bf16* y, long rows, long width, float eps) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
  for (long r = 0; r < rows; r++) norm_row(x + r * width, weight, y + r * width, width, eps);
}

// y = gate * sigmoid(gate) * up, number by number; count is a multiple of 16.
WITH_BF16 void gated(const bf16* gate, const bf16* up, bf16* y, long count) {
#pragma omp parallel for schedule(static) if (count > SMALL)
  for (long i = 0; i < count; i += PART) gate_row(gate + i, up + i, y + i, count - i < PART ? count - i : PART);
}

// Heads (tokens, heads, width) turned by their token's angles, halves as pairs; half of the width a multiple of 16.
WITH_BF16 void turn(const bf16* x, const bf16* cosine, const bf16* sine, bf16* y, long tokens, long heads, long width) {
  const long half = width / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * width > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++) {
      const long place = (t * heads + h) * width;
      turn_head(x + place, cosine + t * half, sine + t * half, y + place, half);
    }
}

}  // extern "C"
