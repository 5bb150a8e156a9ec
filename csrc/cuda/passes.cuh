// The steps of operators over a whole bank, a launch each, and their parameters. A step sets `plan`, `total` of the
// first pass, and `features` and `outs` of a gradient itself.
#pragma once

#include "call.cuh"
#include "collect.cuh"
#include "finish.cuh"
#include "limits.cuh"
#include "order.cuh"
#include "placement.cuh"
#include "statistics.cuh"
#include "stream.cuh"
#include "verdicts.cuh"

namespace action {

struct BankPass {
  Plan plan;
  Side student, teacher, bank;
  float* statistics;            // [6, num_splits, G, N], of one softmax [2, ...], or null
  Merge merge;                  // what they become, where there are no maxima
  int* arrived;                 // [G, tiles of queries] blocks that have come to the end; zeros at first
  const int64_t* query_labels;  // [G, N], or null
  const float* bank_labels;     // [G, M padded to whole tiles], or null
  float* maxima;                // [G, N, line]
  const float* bank_largest;    // [G, M] a row's largest magnitude, or null: unit rows
  int* longest;                 // [G] bits of the largest of them; zeros at first
  int64_t line, num_splits, span, total;
  float student_factor, teacher_factor;
  uint32_t tiles_of_group;  // a power of two
};

/// The first pass over the bank (bank_pass.cu). Without maxima its last block of a tile of queries merges their
/// statistics.
void bank_pass(Queue& queue, BankPass p, const Format& format, int64_t groups);

/// Between the passes, where there are maxima: limits from them, and statistics, if any, from the splits' sums
/// (merge_and_limit.cu).
void merge_and_limit(Queue& queue, const Merge& merge, const Limits& limits);

struct QueryTerms {
  Scales scales;
  const double* statistics;  // [3, G, N], of which a gradient in the student reads [2, G, N], of one softmax [G, N]
  const float* upstream;     // or null, as the next and the factor: for the gradient in the student
  const float* largest;      // [measured] of |upstream|
  float* terms;              // [G, padded, kTerms]
  float* factor;             // one number: what sums have to be multiplied by
  int64_t total;
  unsigned measured;
};

/// What a gradient behind the forward pass reads of every query (query_terms.cu).
void query_terms(Queue& queue, const QueryTerms& p);

struct VerdictsPass {
  Plan plan;
  Side query, bank;
  const float* bank_labels;  // or null
  int64_t num_splits, span;
  Words words;
};

/// The second pass over the bank where no gradient is wanted (verdicts.cu).
void verdicts(Queue& queue, VerdictsPass p, const Format& format, int64_t groups);

struct Gradient {
  Plan plan;
  const char* student;      // [G, N, pitch bytes]
  const char* teacher;      // or null
  const char* bank;         // [G, M, pitch bytes]
  const float* terms;       // [G, N padded to whole tiles, kTerms]
  const float* bank_scale;  // [G, M padded to whole tiles]
  float* partial;           // [num_splits, G, rows, features]
  int64_t queries, queries_padded, rows, rows_padded;
  int64_t num_splits, span, groups;  // splits of the rows that stream by
  int features, outs;                // columns of `partial`; blocks that divide them up
  float student_factor, teacher_factor, student_grad_scale, teacher_grad_scale, boost;
  bool one_term;  // whether a weight is one 16-bit number, not the sum of two
  Words words;    // of the selection's verdicts, which come along with the divergence's gradient in the student
  const float* bank_labels;  // [G, M padded to whole tiles], or null
};

/// Whether the student's gradient takes weights of one term: their 11 bits in float16 are three more than the result
/// keeps, as bfloat16.
inline bool takes_one_term(Dtype raw, const Format& format) {
  return raw == Dtype::bfloat16 && format.dtype == Dtype::float16;
}

/// Blocks that share the columns of a gradient.
inline int64_t column_blocks(const Format& format) { return ceil_div(format.pitch(), 2 * kChunk); }

/// A pass that sums up the gradient in the student's rows, or in the bank's (gradient.cu).
void gradient(Queue& queue, Gradient p, const Format& format, bool for_bank);

/// After the second pass: the gradient in the raw rows, and a selection from verdicts (finish_and_collect.cu). Either
/// is left out where its total is zero.
void finish_and_collect(Queue& queue, const Finish& gradient, const Collect& search, const Format& format);

struct Buffered {
  Plan plan;
  Side query, bank;             // the bank's rows and scales are placed
  const int64_t* query_labels;  // [G, N], or null
  const int64_t* bank_labels;   // [G, M] in the bank's own order
  const int* found;             // [G, N]: -1 for the queries to select for; or null: all of them
  int* arrived;                 // [G, tiles of queries] blocks that have come to the end, with `found`; zeros at first
  Selected out;                 // likewise
  int64_t* keys;                // [G, N, line]
  int64_t* buffer;              // [running, 64, capacity]
  int* floors;                  // [G, N, num_splits] the lowest at first, or null
  int64_t works, num_splits, span, line;
  Placement placement;
  int k, limit, capacity, quota;
};

/// The selection that takes anything, by so many running blocks (buffered.cu).
void buffered(Queue& queue, Buffered p, const Format& format, int64_t running);

/// Writes the selection of every query from its line of keys, of which `count` are used (order.cu).
void order(Queue& queue, const Selected& out, int64_t* keys, int64_t lines, int64_t line, int64_t count);

}  // namespace action
