// What operators over a whole bank do, step by step: softmaxes, their divergence and its gradients, a selection.
#pragma once

#include "call.cuh"
#include "order.cuh"

namespace action {

/// The sizes of queries and a bank. A row's number has 32 bits.
inline Shape whole_bank(Checks& check, const Tensor& query, const char* name, const Tensor& bank) {
  const Shape shape = check.shape(query, name, bank);
  const bool some = shape.groups > 0 && shape.queries > 0 && shape.rows > 0;
  check.require(some && shape.rows <= UINT32_MAX, "there must be queries, and 1 to 2^32 - 1 bank rows");
  return shape;
}

struct Forward {
  Shape shape;
  Tensor student, teacher;  // the latter only where there are two softmaxes
  Tensor bank;
  bool normalize, tf32;
  double student_temp = 1.0, teacher_temp = 1.0;
  const int64_t* query_labels = nullptr;  // [G, N], or null: every row may do
  const int64_t* bank_labels = nullptr;   // [G, M], together with query_labels
  double* student_lse = nullptr;          // [G, N], a result like those below; or null: no softmax
  float* kl = nullptr;                    // [G, N], with a teacher, like the next two
  double* logit_gap = nullptr;
  double* teacher_lse = nullptr;
  float* student_grad = nullptr;  // [G, N, D], or null: not wanted
  Selected selected{};            // no selection if its k is 0
};

void forward(Call& call, const Forward& p);

struct BankGradient {
  Shape shape;
  Tensor student, teacher;  // the latter for the divergence's gradient; without, it is that of student_lse
  Tensor bank;
  bool normalize, tf32;
  double student_temp, teacher_temp;  // the same without a teacher
  const float* upstream;              // [G, N], as the next
  const double* student_lse;
  const double* logit_gap = nullptr;  // with a teacher, like the next
  const double* teacher_lse = nullptr;
  float* bank_grad = nullptr;  // [G, M, D], the result
};

void bank_gradient(Call& call, const BankGradient& p);

/// Factor on a gradient's weights: scales of unit rows are 1/256 to 1/128, and float16 has its finest numbers around 1
/// to 1000.
inline double boost_of(bool normalize) { return normalize ? 0x1p16 : 1.0; }

}  // namespace action
