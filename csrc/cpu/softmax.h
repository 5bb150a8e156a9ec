// The two softmaxes of a panel, lane by lane, over tiles of scores [row][student lanes | teacher lanes].
// Scales are log2(e) / temperature, so that every exponential is a power of two.
#pragma once

#include "tile.h"

namespace action::ACTION_ISA {

template <int NV>
struct Softmax {
  vf student_max[NV], teacher_max[NV];
  vf student_sum[NV], teacher_sum[NV];  // sums of 2**((s - max) scale)
  vf divergence[NV];                    // sum of 2**t' * (t' - s'), t' = (t - max) scale, s' likewise
};

struct Scales {
  float student, teacher;
};

// Moves sums to new maxima: s and t are (old maximum - new maximum) * scale.
inline void move_sums(vf s, vf t, vf& student_sum, vf& teacher_sum, vf& divergence) {
  const vf fs = exp2(s), ft = exp2(t);
  divergence = (divergence + teacher_sum * (t - s)) * ft;
  student_sum *= fs;
  teacher_sum *= ft;
}

// Takes a tile of scores into the softmaxes and leaves the exponentials in its place. `maxima` (student lanes, teacher
// lanes) gets the maxima that they are relative to: the largest so far.
template <int NV>
__attribute__((noinline)) void softmax_tile(float* tile, int64_t count, Scales scales, bool first, Softmax<NV>& state, float* maxima) {
  constexpr int L = kLanes<NV>;
  const vf cs = set1(scales.student), ct = set1(scales.teacher);
  for (int v = 0; v < NV; ++v) {
    float *students = tile + v * kWidth, *teachers = students + L;
    vf ms = first ? load(students) : state.student_max[v];
    vf mt = first ? load(teachers) : state.teacher_max[v];
    for (int64_t j = 0; j < count; ++j) {
      ms = max(ms, load(students + j * 2 * L));
      mt = max(mt, load(teachers + j * 2 * L));
    }
    vf student_sum{}, teacher_sum{}, divergence{};
    for (int64_t j = 0; j < count; ++j) {
      const vf s = (load(students + j * 2 * L) - ms) * cs;
      const vf t = (load(teachers + j * 2 * L) - mt) * ct;
      const vf es = exp2(s), et = exp2(t);
      store(students + j * 2 * L, es);
      store(teachers + j * 2 * L, et);
      student_sum += es;
      teacher_sum += et;
      divergence += et * (t - s);
    }
    if (!first) {
      vf student_before = state.student_sum[v], teacher_before = state.teacher_sum[v], before = state.divergence[v];
      move_sums((state.student_max[v] - ms) * cs, (state.teacher_max[v] - mt) * ct, student_before, teacher_before, before);
      divergence += before;
      student_sum += student_before;
      teacher_sum += teacher_before;
    }
    state.student_max[v] = ms;
    state.teacher_max[v] = mt;
    state.student_sum[v] = student_sum;
    state.teacher_sum[v] = teacher_sum;
    state.divergence[v] = divergence;
    store(maxima + v * kWidth, ms);
    store(maxima + L + v * kWidth, mt);
  }
}

// Adds the softmaxes over other bank rows.
template <int NV>
void merge(Softmax<NV>& state, const Softmax<NV>& other, Scales scales) {
  const vf cs = set1(scales.student), ct = set1(scales.teacher);
  for (int v = 0; v < NV; ++v) {
    const vf ms = max(state.student_max[v], other.student_max[v]), mt = max(state.teacher_max[v], other.teacher_max[v]);
    vf student_sum = other.student_sum[v], teacher_sum = other.teacher_sum[v], divergence = other.divergence[v];
    move_sums((other.student_max[v] - ms) * cs, (other.teacher_max[v] - mt) * ct, student_sum, teacher_sum, divergence);
    move_sums((state.student_max[v] - ms) * cs, (state.teacher_max[v] - mt) * ct, state.student_sum[v],
              state.teacher_sum[v], state.divergence[v]);
    state.student_max[v] = ms;
    state.teacher_max[v] = mt;
    state.student_sum[v] += student_sum;
    state.teacher_sum[v] += teacher_sum;
    state.divergence[v] += divergence;
  }
}

// Scores become exponentials relative to `maxima`.
template <int NV>
__attribute__((noinline)) void exponential_tile(float* tile, int64_t count, Scales scales, const float* maxima) {
  constexpr int L = kLanes<NV>;
  for (int64_t j = 0; j < count; ++j) {
    for (int v = 0; v < NV; ++v) {
      float *s = tile + j * 2 * L + v * kWidth, *t = s + L;
      store(s, exp2((load(s) - load(maxima + v * kWidth)) * set1(scales.student)));
      store(t, exp2((load(t) - load(maxima + L + v * kWidth)) * set1(scales.teacher)));
    }
  }
}

// Exponentials relative to `maxima` become (p_s - p_t) / student_temp * row_scale[j] (1 if null), in the students' place.
template <int NV>
__attribute__((noinline)) void weight_tile(float* tile, int64_t count, Scales scales, const float* maxima, const Softmax<NV>& state,
                 float student_temp, const float* row_scale) {
  constexpr int L = kLanes<NV>;
  vf as[NV], at[NV];
  for (int v = 0; v < NV; ++v) {
    const vf temp = set1(student_temp);
    as[v] = exp2((load(maxima + v * kWidth) - state.student_max[v]) * set1(scales.student)) /
            (state.student_sum[v] * temp);
    at[v] = exp2((load(maxima + L + v * kWidth) - state.teacher_max[v]) * set1(scales.teacher)) /
            (state.teacher_sum[v] * temp);
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

}  // namespace action::ACTION_ISA
