// Python bindings of the CPU kernels: tensors in, nothing out. Every tensor is checked against the problem's shape
// before a kernel sees its address (tensors.h); every kernel runs without the interpreter lock.
#include <pybind11/pybind11.h>

#include <tuple>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "tensors.h"

namespace py = pybind11;
using namespace action;

namespace {

using Given = py::handle;                         // a tensor, or None
using ResourcesTuple = std::tuple<int, int64_t>;  // threads, scratch bytes
using Unlocked = py::gil_scoped_release;

// A kernel over its threads, without the interpreter lock.
template <typename Call>
void run_unlocked(void (*kernel)(const Call&, Resources), const Call& call, const ResourcesTuple& limits) {
  const Resources resources{std::get<0>(limits), std::get<1>(limits)};
  const Unlocked unlocked;
  run(resources.threads, [&] { kernel(call, resources); });
}

// G, N, M and D, of queries [G, N, D] and a bank [G, M, D].
Shape shape(const TensorArgument& query, const TensorArgument& bank) {
  return {query.size(0), query.size(1), bank.size(1), query.size(2)};
}

void bind_contrast(Given student_, Given teacher_, Given bank_, int64_t k, Given query_labels, Given bank_labels,
                   double student_temp, double teacher_temp, bool normalize, Given kl, Given student_lse,
                   Given teacher_lse, Given direction, Given similarity, Given index, ResourcesTuple limits) {
  const TensorArgument student("student", student_), teacher("teacher", teacher_), bank("bank", bank_);
  const Shape sizes = shape(student, bank);
  const auto [g, n, m, d] = sizes;
  Contrast call{sizes, student.rows(g, n, d), {}, bank.rows(g, m, d), k, nullptr, nullptr, student_temp, teacher_temp,
                normalize, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const TensorArgument of_bank("bank_labels", bank_labels), of_queries("query_labels", query_labels);
  if (of_bank.given() || of_queries.given()) {
    call.query_labels = of_queries.contiguous<int64_t>({g, n});
    call.bank_labels = of_bank.contiguous<int64_t>({g, m});
  }
  if (teacher.given()) {
    call.teacher = teacher.rows(g, n, d);
    call.kl = TensorArgument("kl", kl).contiguous<float>({g, n});
    call.student_lse = TensorArgument("student_lse", student_lse).contiguous<double>({g, n});
    call.teacher_lse = TensorArgument("teacher_lse", teacher_lse).contiguous<double>({g, n});
    call.direction = TensorArgument("direction", direction).optional<float>({g, n, d});
  }
  call.similarity = TensorArgument("similarity", similarity).contiguous<float>({g, n, k});
  call.index = TensorArgument("index", index).contiguous<int64_t>({g, n, k});
  run_unlocked(kernels().contrast, call, limits);
}

void bind_bank_gradient(Given student_, Given teacher, Given bank_, Given grad_kl, Given kl, Given student_lse,
                        Given teacher_lse, double student_temp, double teacher_temp, bool normalize, Given grad_bank,
                        ResourcesTuple limits) {
  const TensorArgument student("student", student_), bank("bank", bank_);
  const Shape sizes = shape(student, bank);
  const auto [g, n, m, d] = sizes;
  const BankGradient call{sizes,
                          student.rows(g, n, d),
                          TensorArgument("teacher", teacher).rows(g, n, d),
                          bank.rows(g, m, d),
                          TensorArgument("grad_kl", grad_kl).contiguous<float>({g, n}),
                          TensorArgument("kl", kl).contiguous<float>({g, n}),
                          TensorArgument("student_lse", student_lse).contiguous<double>({g, n}),
                          TensorArgument("teacher_lse", teacher_lse).contiguous<double>({g, n}),
                          student_temp,
                          teacher_temp,
                          normalize,
                          TensorArgument("grad_bank", grad_bank).contiguous<float>({g, m, d})};
  run_unlocked(kernels().bank_gradient, call, limits);
}

void bind_gather(Given query_, Given positive, Given bank_, Given index_, double temp, bool normalize, Given loss,
                 Given lse, ResourcesTuple limits) {
  const TensorArgument query("query", query_), bank("bank", bank_), index("index", index_);
  const Shape sizes = shape(query, bank);
  const auto [g, n, m, d] = sizes;
  const int64_t k = index.size(2);
  const Gather call{sizes,
                    query.rows(g, n, d),
                    TensorArgument("positive", positive).rows(g, n, d),
                    bank.rows(g, m, d),
                    index.contiguous<int64_t>({g, n, k}),
                    k,
                    temp,
                    normalize,
                    TensorArgument("loss", loss).contiguous<float>({g, n}),
                    TensorArgument("lse", lse).contiguous<double>({g, n})};
  run_unlocked(kernels().gather, call, limits);
}

void bind_gather_gradient(Given query_, Given positive_, Given bank_, Given index_, Given grad_similarity_,
                          Given grad_loss, Given lse, double temp, bool normalize, Given grad_query,
                          Given grad_positive, Given grad_bank, ResourcesTuple limits) {
  const TensorArgument query("query", query_), positive("positive", positive_), bank("bank", bank_);
  const TensorArgument index("index", index_), grad_similarity("grad_similarity", grad_similarity_);
  const Shape sizes = shape(query, bank);
  const auto [g, n, m, d] = sizes;
  const int64_t k = index.size(2);
  GatherGradient call{};
  call.shape = sizes;
  call.query = query.rows(g, n, d);
  call.bank = bank.rows(g, m, d);
  call.index = index.contiguous<int64_t>({g, n, k});
  call.k = k;
  if (grad_similarity.given()) {
    call.grad_similarity = grad_similarity.contiguous<float>({g, n, k});
  } else {
    call.positive = positive.rows(g, n, d);
    call.grad_loss = TensorArgument("grad_loss", grad_loss).contiguous<float>({g, n});
    call.lse = TensorArgument("lse", lse).contiguous<double>({g, n});
    call.grad_positive = TensorArgument("grad_positive", grad_positive).optional<float>({g, n, d});
  }
  call.temp = temp;
  call.normalize = normalize;
  call.grad_query = TensorArgument("grad_query", grad_query).optional<float>({g, n, d});
  call.grad_bank = TensorArgument("grad_bank", grad_bank).optional<float>({g, m, d});
  run_unlocked(kernels().gather_gradient, call, limits);
}

void bind_relation(Given query_labels, Given thresholds_, Given class_start, Given bank_rows, uint64_t seed,
                   Given index_, ResourcesTuple limits) {
  const TensorArgument thresholds("thresholds", thresholds_), index("index", index_), rows("rows", bank_rows);
  const int64_t g = index.size(0), n = index.size(1), k = index.size(2), c = thresholds.size(2);
  const int64_t m = rows.size(1, 2);
  const Relation call{g,
                      n,
                      m,
                      c,
                      k,
                      TensorArgument("query_labels", query_labels).contiguous<int64_t>({g, n}),
                      thresholds.contiguous<int64_t>({g, c, c}),
                      TensorArgument("class_start", class_start).contiguous<int64_t>({g, c + 1}),
                      rows.contiguous<int64_t>({g, m}),
                      seed,
                      index.contiguous<int64_t>({g, n, k})};
  run_unlocked(&relation_negatives, call, limits);
}

void bind_exp2(Given x_, Given y) {
  const TensorArgument x("x", x_);
  const int64_t n = x.size(0, 1);
  const float* from = x.contiguous<float>({n});
  float* to = TensorArgument("y", y).contiguous<float>({n});
  const Unlocked unlocked;
  kernels().exp2(from, to, n);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  TensorReader::instance();
  m.doc() = "Native CPU kernels of action_kernels (see csrc/cpu/kernels.h).";
  m.def("contrast", bind_contrast);
  m.def("bank_gradient", bind_bank_gradient);
  m.def("gather", bind_gather);
  m.def("gather_gradient", bind_gather_gradient);
  m.def("relation_negatives", bind_relation);
  m.def("exp2", bind_exp2);
  m.def("variants", [] {
    py::list names;
    for (const Kernels* variant : variants()) names.append(variant->name);
    return names;
  });
  m.def("variant", [] { return kernels().name; });
  m.def("use_variant", use_variant);
  m.def("use_attributes", [](bool only) { TensorReader::instance().use_attributes(only); });
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
