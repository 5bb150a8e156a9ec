// What happens once per query between the passes: merging the splits of a bank, and the terms that gradients need. Work
// of one thread.
#pragma once

#include "online_softmax.cuh"

namespace action {

constexpr float kLn2 = 0.69314718055994530942f;

/// Queries' scales and temperatures, by which a log-sum-exp becomes terms.
struct Scales {
  const float* student;  // [G, padded], as the next
  const float* teacher;  // or null: there is no teacher
  int64_t queries, padded;
  double student_temp, teacher_temp;
};

/// A logit as a similarity near it and a rest: log2 p = (similarity - center) log2(e) / temp - rest, in which no
/// log-sum-exp is rounded.
__device__ inline void center(double lse, double temp, float& middle, float& rest) {
  middle = static_cast<float>(lse * temp);
  rest = static_cast<float>((lse - static_cast<double>(middle) / temp) * kLog2e);
}

/// Writes what the student's gradient reads of a query; its place among the terms [G, padded, kTerms].
__device__ inline float* write_terms(float* terms, const Scales& p, int64_t row, double student_lse,
                                     double teacher_lse) {
  const int64_t place = row / p.queries * p.padded + row % p.queries;
  float* out = terms + place * kTerms;
  for (int i = 0; i < kTerms; ++i) out[i] = 0.0f;
  out[0] = p.student[place];
  center(student_lse, p.student_temp, out[1], out[2]);
  if (p.teacher) {
    out[3] = p.teacher[place];
    center(teacher_lse, p.teacher_temp, out[4], out[5]);
  }
  return out;
}

/// Sums of splits, and what they become.
struct Merge {
  const float* sums;   // [6, num_splits, total], of one softmax [2, ...]
  Scales scales;       // for the terms
  float* kl;           // [total], or null: there is one softmax
  double* statistics;  // [3, total], or null: not wanted; of one softmax the log-sum-exp alone
  float* terms;        // [G, padded, kTerms] for the student's gradient, or null
  int64_t num_splits, total;
};

/// Two softmaxes' sums for a query.
__device__ inline void merge_pair(const Merge& p, int64_t row) {
  const double student_temp = p.scales.student_temp, teacher_temp = p.scales.teacher_temp;
  const float s_factor = static_cast<float>(kLog2e / student_temp);
  const float t_factor = static_cast<float>(kLog2e / teacher_temp);
  const int64_t step = p.num_splits * p.total;
  Divergence all;
  for (int64_t split = 0; split < p.num_splits; ++split) {
    const float* place = p.sums + split * p.total + row;
    const Divergence part{place[0], place[step], place[2 * step], place[3 * step], place[5 * step], place[4 * step]};
    if (split == 0) {
      all = part;
    } else {
      all.merge(part, s_factor, t_factor);
    }
  }
  const float s_log = logf(all.s_sum), t_log = logf(all.t_sum), divergence = all.gap * kLn2 / all.t_sum;
  const double s_top = static_cast<double>(all.s_max) / student_temp;
  const double t_top = static_cast<double>(all.t_max) / teacher_temp;
  const double s_there = static_cast<double>(all.s_there) / student_temp;
  const double student_lse = s_top + s_log, teacher_lse = t_top + t_log;
  p.kl[row] = static_cast<float>(divergence + (s_log - t_log) + (s_top - s_there));
  if (p.statistics) {
    p.statistics[row] = student_lse;
    p.statistics[p.total + row] = teacher_lse;
    p.statistics[2 * p.total + row] = divergence + (t_top - s_there);
  }
  if (p.terms) write_terms(p.terms, p.scales, row, student_lse, teacher_lse);
}

/// One softmax's.
__device__ inline void merge_one(const Merge& p, int64_t row) {
  const float factor = static_cast<float>(kLog2e / p.scales.student_temp);
  const int64_t step = p.num_splits * p.total;
  LogSum all{p.sums[row], p.sums[step + row]};
  for (int64_t split = 1; split < p.num_splits; ++split) {
    const float* place = p.sums + split * p.total + row;
    all.merge({place[0], place[step]}, factor);
  }
  const double lse = static_cast<double>(all.max) / p.scales.student_temp + logf(all.sum);
  p.statistics[row] = lse;
  if (p.terms) write_terms(p.terms, p.scales, row, lse, 0.0);
}

__device__ inline void merge_row(const Merge& p, int64_t row) {
  if (p.kl) {
    merge_pair(p, row);
  } else {
    merge_one(p, row);
  }
}

}  // namespace action
