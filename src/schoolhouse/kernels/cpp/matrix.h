// A packed matrix, and the product with it that the threads of a parallel region share.

#pragma once

#include "lanes.h"

// (n, k) of 16 (bf16), 8 or 4 bits; codes with scales of groups along k.
struct Matrix {
  const void* weight;
  const float* scales;
  long group, n, k, bits;
};

// y (m, n) = x (m, k) times the transpose of a matrix. No thread waits for the others at the end. scratch: m * k numbers,
// and not below 32 * k.
void multiply_rows(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch);
