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

/// What is compared: queries as the student has them, and as the teacher where there are two softmaxes, with a bank.
struct Softmaxes {
  Shape shape;
  Tensor student, teacher, bank;
  bool normalize, tf32;
  double student_temp = 1.0, teacher_temp = 1.0;  // the same without a teacher
};

struct Forward : Softmaxes {
  const int64_t* query_labels = nullptr;  // [G, N], or null: every row may do
  const int64_t* bank_labels = nullptr;   // [G, M], together with query_labels
  float* kl = nullptr;                    // [G, N], with a teacher, a result like those below
  double* statistics = nullptr;           // [3, G, N], or null: not wanted; without a teacher the log-sum-exp alone
  float* student_grad = nullptr;          // [G, N, D], or null: not wanted
  Selected selected{};                    // no selection if its k is 0

  bool softmax() const { return kl || statistics; }
};

void forward(Call& call, const Forward& p);

/// The gradient of the divergence or, without a teacher, of the log-sum-exp: in the bank of the sum over all queries,
/// or in the student of each query's own.
struct Backward : Softmaxes {
  const double* statistics = nullptr;  // as QueryTerms has them
  const float* upstream = nullptr;     // [G, N], for the gradient in the bank
  float* result = nullptr;             // [G, M, D] with `upstream`, else [G, N, D]
};

void backward(Call& call, const Backward& p);

}  // namespace action
