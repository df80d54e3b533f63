// A packed matrix, and the product with it that the threads of a parallel region share.

#pragma once

#include "lanes.h"

// (n, k) of 16 (bf16), 8 or 4 bits; codes with scales of groups along k in bf16, of 32 columns together.
struct Matrix {
  const void *weight, *scales;
  long group, n, k, bits;
};

// y (m, n) = x (m, k) times the transpose of a matrix. No thread waits for the others at the end. scratch: room for m
// rows, filled up to 32, of 2 * k + 128 numbers. filled: behind x, too, there is memory for as many rows, whatever it holds.
void multiply_rows(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch,
                   bool filled = false);

// The same with codes.
void multiply_codes(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch,
                    bool filled = false);

// How many rows a product of so many chooses its way by: see `choose_as`.
long rows_like(long m);
