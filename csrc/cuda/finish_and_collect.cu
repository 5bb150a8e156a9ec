// After the second pass, one launch: partial sums become the gradient in the raw rows, verdicts a selection.
//
// Neither reads what the other writes: the first blocks do the one, the others the other. Without verdicts a kernel of
// its own finishes the gradient: it needs fewer registers.
#include "collect.cuh"
#include "finish.cuh"
#include "launch.cuh"
#include "library.cuh"

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
    finish_rows<Element>(gradient);
  }
}

unsigned finishing_blocks(const Finish& p, int threads) {
  const int warps = threads / 32;
  return static_cast<unsigned>((p.total + warps - 1) / warps);
}

template <class Math>
int32_t run(const Finish& gradient, const Collect& search, void* stream) {
  const int threads = search.num_splits * search.capacity <= kFewWords ? 32 : kMostThreads;
  const unsigned finishing = finishing_blocks(gradient, threads);
  return enqueue(finish_and_collect<Math>, finishing + static_cast<unsigned>(search.total), threads,
                 8 * (search.most + 1), stream, finishing, gradient, search);
}

#define FINISH_AND_COLLECT_FIELDS(FIELD)                                                                   \
  FIELD(Tensor, partial) /* [parts, G, rows, padded D] float32 of contrast_gradient, or none */            \
  FIELD(Tensor, factor)  /* [1] float32, or none */                                                        \
  FIELD(double, constant)                                                                                  \
  FIELD(Tensor, raw) /* [G, rows, D] as they were before they were prepared */                             \
  FIELD(bool, normalize)                                                                                   \
  FIELD(Tensor, grad)         /* [G, rows, D] float32, a result */                                         \
  FIELD(Tensor, query)        /* [G, N, padded D] prepared rows */                                         \
  FIELD(Tensor, query_scale)  /* [G, N padded to whole tiles] float32 */                                   \
  FIELD(Tensor, bank)         /* [G, M, padded D] */                                                       \
  FIELD(Tensor, bank_scale)   /* [G, M padded to whole tiles] float32 */                                   \
  FIELD(bool, tf32)           /* float32 rows have been rounded to it */                                   \
  FIELD(int64_t, place_tiles) /* how the bank's rows are placed, with the next */                          \
  FIELD(int64_t, place_block)                                                                              \
  FIELD(int64_t, capacity)  /* words that a split may have for a query */                                  \
  FIELD(Tensor, counts)     /* [num_splits, G, N] int32 words that there would be */                       \
  FIELD(Tensor, words)      /* [G, N, line] int64, or none */                                              \
  FIELD(Tensor, found)      /* [G, N] int32 how many; stays -1, or becomes it, where the buffer selects */ \
  FIELD(Tensor, similarity) /* [G, N, k] float32 of the others, a result like the next */                  \
  FIELD(Tensor, index)      /* [G, N, k] int64 */
ACTION_PARAMS(FinishAndCollectParams, FINISH_AND_COLLECT_FIELDS)

Finish gradient_of(Checks& check, const FinishAndCollectParams& p) {
  const int64_t g = check.size(p.raw, "raw", 0, 3), n = check.size(p.raw, "raw", 1, 3);
  const int64_t d = check.size(p.raw, "raw", 2, 3);
  const int64_t parts = check.size(p.partial, "partial", 0, 4), width = check.size(p.partial, "partial", 3, 4);
  check.rows(p.raw, "raw", {g, n, d});
  if (width < d) check.refuse(p.partial, "partial", "as wide as the rows");
  return {matrix_of(p.raw),
          check.contiguous<float>(p.partial, "partial", {parts, g, n, width}),
          check.optional<float>(p.factor, "factor", {1}),
          check.contiguous<float>(p.grad, "grad", {g, n, d}),
          n,
          g * n,
          p.raw.dtype,
          static_cast<int>(parts),
          static_cast<int>(d),
          static_cast<int>(width),
          static_cast<float>(p.constant),
          p.normalize};
}

Collect search_of(Checks& check, const FinishAndCollectParams& p) {
  const int64_t g = check.size(p.query, "query", 0, 3), n = check.size(p.query, "query", 1, 3);
  const int64_t width = check.size(p.query, "query", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const int64_t line = check.size(p.words, "words", 2, 3), num_splits = check.size(p.counts, "counts", 0, 3);
  const Dtype dtype = p.query.dtype;
  check.rows(p.query, "query", {g, n, width});
  Collect call{};
  call.query = side_of(check, p.query, "query", p.query_scale, "query_scale", dtype, g, n, width);
  call.bank = side_of(check, p.bank, "bank", p.bank_scale, "bank_scale", dtype, g, m, width);
  call.placement = placement_of(check, p.place_tiles, p.place_block, m);
  call.words = check.contiguous<int64_t>(p.words, "words", {g, n, line});
  call.counts = check.contiguous<int32_t>(p.counts, "counts", {num_splits, g, n});
  call.found = check.contiguous<int32_t>(p.found, "found", {g, n});
  call.out = selected_of(check, p.similarity, p.index, g, n);
  check.require(p.capacity > 0 && p.capacity <= line && num_splits * p.capacity <= line && line <= INT32_MAX,
                "capacity words of every split must fit a line");
  call.pitch = width * (dtype == Dtype::float32 ? 4 : 2);
  call.line = line;
  call.total = g * n;
  call.num_splits = static_cast<int>(num_splits);
  call.capacity = static_cast<int>(p.capacity);
  call.most = static_cast<int>(line < kSorted ? line : kSorted);
  return call;
}

int32_t finish_and_collect_launcher(const FinishAndCollectParams& p, void* stream) {
  const bool finishes = p.partial.given() || p.grad.given(), collects = p.words.given() || p.found.given();
  Checks check(kDevice, finishes ? p.raw : p.query);
  check.require(finishes || collects, "there must be partial sums or words");
  const Finish gradient = finishes ? gradient_of(check, p) : Finish{};
  const Collect search = collects ? search_of(check, p) : Collect{};
  if (finishes && collects && p.query.dtype != Dtype::float32 && p.raw.dtype != p.query.dtype)
    check.refuse(p.raw, "raw", name_of(p.query.dtype));
  if (!check.passed()) return check.status();
  if (collects)
    return with_math(p.query.dtype, p.tf32, [&](auto math) { return run<decltype(math)>(gradient, search, stream); });
  auto* kernel = of_dtype(gradient.dtype, finish<float>, finish<__half>, finish<__nv_bfloat16>);
  return enqueue(kernel, finishing_blocks(gradient, kMostThreads), kMostThreads, 0, stream, gradient);
}

}  // namespace

const Launcher kFinishAndCollect{"finish_and_collect", untyped<FinishAndCollectParams, finish_and_collect_launcher>,
                                 ACTION_LAYOUT(FinishAndCollectParams)};

}  // namespace action
