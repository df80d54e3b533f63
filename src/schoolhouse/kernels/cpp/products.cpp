// The gradients of weights in training, by AMX's tiles.

#include "sides.h"

extern "C" {

// y (m, n) = the transpose of a (k, m) times b (k, n), or that is added to it.
void turned_product(const bf16* a, long a_stride, const bf16* b, long b_stride, bf16* y, long y_stride, long m, long n,
                    long k, long add) {
  multiply_all({{{a, a_stride, m, false}, {b, b_stride, n, false}, k, y, y_stride, add != 0}}, omp_get_max_threads());
}

}  // extern "C"
