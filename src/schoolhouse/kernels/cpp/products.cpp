// Products of two bf16 matrices as training needs them, by AMX's tiles: gradients of weights, and groups of rows that meet
// a matrix each.

#include "sides.h"

extern "C" {

// y (m, n) = the transpose of a (k, m) times b (k, n), or that is added to it.
void turned_product(const bf16* a, long a_stride, const bf16* b, long b_stride, bf16* y, long y_stride, long m, long n,
                    long k, long add) {
  multiply_all({{{a, a_stride, m, false}, {b, b_stride, n, false}, k, y, y_stride, add != 0}}, omp_get_max_threads());
}

// The transposes of groups of rows of a (rows, m), which end at `ends`, times the same rows of b (rows, n), each to a matrix
// (m, n) of its own, all of one stride, or added to it. A group without rows leaves its matrix alone.
void grouped_turned(const bf16* a, long a_stride, const bf16* b, long b_stride, const int64_t* ends,
                    const int64_t* matrices, long stride, long groups, long m, long n, long add) {
  std::vector<Product> products;
  for (long g = 0, first = 0; g < groups; first = ends[g++])
    if (ends[g] > first)
      products.push_back({{a + first * a_stride, a_stride, m, false}, {b + first * b_stride, b_stride, n, false},
                          ends[g] - first, (bf16*)matrices[g], stride, add != 0});
  multiply_all(products, 1);
}

// Groups of rows of x (m, k), which end at `ends`, each times a matrix of its own: (n, k), or (k, n) if not along, all of one
// stride. The result is y (m, n), or is added to it.
void grouped_product(const bf16* x, long x_stride, const int64_t* ends, const int64_t* matrices, long stride, long along,
                     bf16* y, long y_stride, long groups, long n, long k, long add) {
  std::vector<Product> products;
  for (long g = 0, first = 0; g < groups; first = ends[g++])
    if (ends[g] > first)
      products.push_back({{x + first * x_stride, x_stride, ends[g] - first, true},
                          {(const bf16*)matrices[g], stride, n, along != 0},
                          k, y + first * y_stride, y_stride, add != 0});
  multiply_all(products, 1);
}

}  // extern "C"
