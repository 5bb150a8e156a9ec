// The native CPU kernels: what each takes, and the table of functions that one instruction set provides.
//
// Letters as in action_kernels/backends/interface.py: G groups, N queries, M bank rows, D features, k selected rows.
// Outputs are contiguous float32 (log-sum-exps float64, indices int64); inputs may have any strides. No function touches Python.
#pragma once

#include <cstdint>

namespace action {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// A [G, rows, D] tensor; strides count elements.
struct Matrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t group_stride = 0, row_stride = 0, col_stride = 0;
};

// Threads to use, and the bytes of scratch that all of them together may hold.
struct Resources {
  int threads = 1;
  int64_t scratch = 0;
};

struct Shape {
  int64_t groups, queries, rows, features;
};

// action_contrast; without a teacher (data == nullptr) hard_negatives.
struct Contrast {
  Shape shape;
  Matrix student, teacher, bank;
  int64_t k;                                  // 0: no selection
  const int64_t *query_labels, *bank_labels;  // [G, N], [G, M] or nullptr
  double student_temp, teacher_temp;
  bool normalize;
  float* kl;                                  // [G, N]
  double *student_lse, *teacher_lse;          // [G, N]
  float* direction;                       // [G, N, D] or nullptr
  float* similarity;                      // [G, N, k] or nullptr
  int64_t* index;                         // [G, N, k] or nullptr
};

struct BankGradient {
  Shape shape;
  Matrix student, teacher, bank;
  const float *grad_kl, *kl;                 // [G, N]
  const double *student_lse, *teacher_lse;  // [G, N]
  double student_temp, teacher_temp;
  bool normalize;
  float* grad_bank;  // [G, M, D]
};

// InfoNCE over gathered bank rows.
struct Gather {
  Shape shape;
  Matrix query, positive, bank;
  const int64_t* index;  // [G, N, k]
  int64_t k;
  double temp;
  bool normalize;
  float* loss;  // [G, N]
  double* lse;  // [G, N]
};

// Gradient of gathered similarities: their weights are given (`grad_similarity`), or those of the InfoNCE loss.
struct GatherGradient {
  Shape shape;
  Matrix query, positive, bank;
  const int64_t* index;          // [G, N, k]
  int64_t k;
  const float* grad_similarity;  // [G, N, k], or nullptr: InfoNCE with grad_loss, lse and temp
  const float* grad_loss;        // [G, N]
  const double* lse;             // [G, N]
  double temp;
  bool normalize;
  float *grad_query, *grad_positive;  // [G, N, D] or nullptr
  float* grad_bank;                   // [G, M, D] or nullptr
};

struct Relation {
  int64_t groups, queries, rows, classes, k;
  const int64_t *query_labels, *thresholds, *class_start, *bank_rows;
  uint64_t seed;
  int64_t* index;  // [G, N, k]
};

struct Kernels {
  const char* name;
  void (*contrast)(const Contrast&, Resources);
  void (*bank_gradient)(const BankGradient&, Resources);
  void (*gather)(const Gather&, Resources);
  void (*gather_gradient)(const GatherGradient&, Resources);
  void (*exp2)(const float* x, float* y, int64_t n);
};

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

void relation_negatives(const Relation&, Resources);

}  // namespace action
