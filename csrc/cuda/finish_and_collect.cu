// After the second pass, one launch: partial sums become the gradient in the raw rows, verdicts a selection.
//
// Neither reads what the other writes: the first blocks do the one, the others the other. Without verdicts a kernel of
// its own finishes the gradient: it needs fewer registers.
#include "passes.cuh"

namespace action {
namespace {

constexpr int kMostThreads = 128;

/// The block's part of the rows, a warp each.
template <class T>
__device__ void finish_rows(const Finish& p) {
  const int64_t line = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (line < p.total) finish_row<T>(p, line);  // whole warps
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) finish(Finish p) {
  finish_rows<T>(p);
}

template <class Math>
__global__ void __launch_bounds__(kMostThreads)
    finish_and_collect(unsigned finishing, Finish gradient, Collect search) {
  using Element = typename Math::Element;
  if (blockIdx.x >= finishing) {
    collect_query<Math>(search, blockIdx.x - finishing);
  } else if constexpr (sizeof(Element) == 4) {  // products of raw rows of any types
    if (gradient.dtype == Dtype::float16) return finish_rows<__half>(gradient);
    if (gradient.dtype == Dtype::bfloat16) return finish_rows<__nv_bfloat16>(gradient);
    finish_rows<float>(gradient);
  } else {
    if (gradient.dtype == Dtype::bfloat16) return finish_rows<__nv_bfloat16>(gradient);
    finish_rows<Element>(gradient);
  }
}

template <class Math>
void run(Queue& queue, const Finish& gradient, const Collect& search) {
  const int threads = search.num_splits * search.capacity <= kFewWords ? 32 : kMostThreads;
  const int64_t finishing = ceil_div(gradient.total, threads / 32);
  queue.enqueue("finish_and_collect", finish_and_collect<Math>, finishing + search.total, threads,
                8 * (search.most + 1), static_cast<unsigned>(finishing), gradient, search);
}

}  // namespace

void finish_and_collect(Queue& queue, const Finish& gradient, const Collect& search, const Format& format) {
  if (search.total) {
    with_math(format.dtype, format.tf32, [&](auto math) { run<decltype(math)>(queue, gradient, search); });
  } else {
    auto* kernel = of_dtype(gradient.dtype, finish<float>, finish<__half>, finish<__nv_bfloat16>);
    queue.enqueue("finish", kernel, ceil_div(gradient.total, kMostThreads / 32), kMostThreads, 0, gradient);
  }
}

}  // namespace action
