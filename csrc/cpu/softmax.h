// The softmaxes of a panel, lane by lane, over tiles of scores [row][student lanes | teacher lanes] where there are
// two, [row][lanes] where there is one. Scales are log2(e) / temperature, so that every exponential is a power of two.
#pragma once

#include "tile.h"

namespace action::ACTION_ISA {

// Of one vector of lanes. The divergence is taken relative to the teacher's largest score and to the student's score of
// that same bank row: where one row has all the weight, or the two distributions are close, nothing large is added up.
struct Sums {
  vf student, teacher;  // of 2**((s - student_max) scale) and 2**((t - teacher_max) scale)
  vf divergence;        // of 2**t' (t' - s'), t' = (t - teacher_max) scale, s' = (s - student_there) scale
};

// SIDES softmaxes.
template <int NV, int SIDES>
struct Softmax;

template <int NV>
struct Softmax<NV, 2> {
  vf student_max[NV], teacher_max[NV];
  vf student_there[NV];  // the student's score where the teacher's is largest
  Sums sums[NV];
};

template <int NV>
struct Softmax<NV, 1> {
  vf student_max[NV], sum[NV];  // sum: of 2**((s - student_max) scale)
};

template <int NV>
struct Softmax<NV, 0> {};

struct Scales {
  float student, teacher;
};

// Makes sums relative to other references; every argument is (old reference - new reference) * scale.
inline Sums moved(Sums sums, vf student, vf teacher, vf student_there) {
  const vf decay = exp2(teacher);
  return {sums.student * exp2(student), sums.teacher * decay,
          (sums.divergence + sums.teacher * (teacher - student_there)) * decay};
}

// Adds a tile of scores to the softmaxes and replaces it with the exponentials. `maxima` (student lanes, teacher
// lanes) gets the maxima that they are relative to: the largest so far.
template <int NV>
__attribute__((noinline)) void softmax_tile(float* tile, int64_t count, Scales scales, bool first,
                                            Softmax<NV, 2>& state, float* maxima) {
  constexpr int L = kLanes<NV>;
  const vf cs = set1(scales.student), ct = set1(scales.teacher);
  for (int v = 0; v < NV; ++v) {
    float *students = tile + v * kWidth, *teachers = students + L;
    vf ms = first ? load(students) : state.student_max[v];
    vf mt = first ? load(teachers) : state.teacher_max[v];
    vf there = first ? load(students) : state.student_there[v];
    for (int64_t j = 0; j < count; ++j) {
      const vf score = load(students + j * 2 * L), teacher = load(teachers + j * 2 * L);
      there = teacher > mt ? score : there;
      ms = max(ms, score);
      mt = max(mt, teacher);
    }
    Sums sums{};
    for (int64_t j = 0; j < count; ++j) {
      const vf score = load(students + j * 2 * L);
      const vf s = (score - ms) * cs;
      const vf t = (load(teachers + j * 2 * L) - mt) * ct;
      const vf es = exp2(s), et = exp2(t);
      store(students + j * 2 * L, es);
      store(teachers + j * 2 * L, et);
      sums.student += es;
      sums.teacher += et;
      sums.divergence += et * (t - (score - there) * cs);
    }
    if (!first) {
      const Sums before = moved(state.sums[v], (state.student_max[v] - ms) * cs, (state.teacher_max[v] - mt) * ct,
                                (state.student_there[v] - there) * cs);
      sums.student += before.student;
      sums.teacher += before.teacher;
      sums.divergence += before.divergence;
    }
    state.student_max[v] = ms;
    state.teacher_max[v] = mt;
    state.student_there[v] = there;
    state.sums[v] = sums;
    store(maxima + v * kWidth, ms);
    store(maxima + L + v * kWidth, mt);
  }
}

template <int NV>
__attribute__((noinline)) void softmax_tile(float* tile, int64_t count, Scales scales, bool first,
                                            Softmax<NV, 1>& state, float* maxima) {
  constexpr int L = kLanes<NV>;
  const vf scale = set1(scales.student);
  for (int v = 0; v < NV; ++v) {
    float* scores = tile + v * kWidth;
    vf largest = first ? load(scores) : state.student_max[v], sum{};
    for (int64_t j = 0; j < count; ++j) largest = max(largest, load(scores + j * L));
    for (int64_t j = 0; j < count; ++j) {
      const vf e = exp2((load(scores + j * L) - largest) * scale);
      store(scores + j * L, e);
      sum += e;
    }
    if (!first) sum += state.sum[v] * exp2((state.student_max[v] - largest) * scale);
    state.student_max[v] = largest;
    state.sum[v] = sum;
    store(maxima + v * kWidth, largest);
  }
}

// Merges the softmaxes over other bank rows into these.
template <int NV>
void merge(Softmax<NV, 2>& state, const Softmax<NV, 2>& other, Scales scales) {
  const vf cs = set1(scales.student), ct = set1(scales.teacher);
  for (int v = 0; v < NV; ++v) {
    const vf ms = max(state.student_max[v], other.student_max[v]), mt = max(state.teacher_max[v], other.teacher_max[v]);
    const vf there = other.teacher_max[v] > state.teacher_max[v] ? other.student_there[v] : state.student_there[v];
    const Sums ours = moved(state.sums[v], (state.student_max[v] - ms) * cs, (state.teacher_max[v] - mt) * ct,
                            (state.student_there[v] - there) * cs);
    const Sums theirs = moved(other.sums[v], (other.student_max[v] - ms) * cs, (other.teacher_max[v] - mt) * ct,
                              (other.student_there[v] - there) * cs);
    state.student_max[v] = ms;
    state.teacher_max[v] = mt;
    state.student_there[v] = there;
    state.sums[v] = {ours.student + theirs.student, ours.teacher + theirs.teacher, ours.divergence + theirs.divergence};
  }
}

template <int NV>
void merge(Softmax<NV, 1>& state, const Softmax<NV, 1>& other, Scales scales) {
  const vf scale = set1(scales.student);
  for (int v = 0; v < NV; ++v) {
    const vf largest = max(state.student_max[v], other.student_max[v]);
    state.sum[v] = state.sum[v] * exp2((state.student_max[v] - largest) * scale) +
                   other.sum[v] * exp2((other.student_max[v] - largest) * scale);
    state.student_max[v] = largest;
  }
}

// Scores become exponentials relative to `maxima`.
template <int NV, int SIDES>
__attribute__((noinline)) void exponential_tile(float* tile, int64_t count, Scales scales, const float* maxima) {
  constexpr int L = kLanes<NV>;
  for (int64_t j = 0; j < count; ++j) {
    for (int v = 0; v < NV; ++v) {
      float* s = tile + j * SIDES * L + v * kWidth;
      store(s, exp2((load(s) - load(maxima + v * kWidth)) * set1(scales.student)));
      if constexpr (SIDES == 2) {
        float* t = s + L;
        store(t, exp2((load(t) - load(maxima + L + v * kWidth)) * set1(scales.teacher)));
      }
    }
  }
}

// Exponentials relative to `maxima` become (p_s - p_t) / student_temp * row_scale[j] (1 if null), in place of the
// students'.
template <int NV>
__attribute__((noinline)) void weight_tile(float* tile, int64_t count, Scales scales, const float* maxima,
                                           const Softmax<NV, 2>& state, float student_temp, const float* row_scale) {
  constexpr int L = kLanes<NV>;
  vf as[NV], at[NV];
  for (int v = 0; v < NV; ++v) {
    const vf temp = set1(student_temp);
    as[v] = exp2((load(maxima + v * kWidth) - state.student_max[v]) * set1(scales.student)) /
            (state.sums[v].student * temp);
    at[v] = exp2((load(maxima + L + v * kWidth) - state.teacher_max[v]) * set1(scales.teacher)) /
            (state.sums[v].teacher * temp);
  }
  for (int64_t j = 0; j < count; ++j) {
    const vf factor = set1(row_scale ? row_scale[j] : 1.0f);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* s = tile + j * 2 * L + v * kWidth;
      const vf ps = rounded(load(s) * as[v]), pt = rounded(load(s + L) * at[v]);  // equal ones cancel exactly
      store(s, (ps - pt) * factor);
    }
  }
}

// The same for one softmax: p / temp * row_scale[j].
template <int NV>
__attribute__((noinline)) void weight_tile(float* tile, int64_t count, Scales scales, const float* maxima,
                                           const Softmax<NV, 1>& state, float temp, const float* row_scale) {
  vf a[NV];
  for (int v = 0; v < NV; ++v)
    a[v] =
        exp2((load(maxima + v * kWidth) - state.student_max[v]) * set1(scales.student)) / (state.sum[v] * set1(temp));
  for (int64_t j = 0; j < count; ++j) {
    const vf factor = set1(row_scale ? row_scale[j] : 1.0f);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* s = tile + j * kLanes<NV> + v * kWidth;
      store(s, load(s) * a[v] * factor);
    }
  }
}

}  // namespace action::ACTION_ISA
