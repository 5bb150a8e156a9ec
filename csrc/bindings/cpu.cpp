// Python bindings of the CPU kernels: addresses and sizes in, nothing out. Every call releases the interpreter lock.
#include <pybind11/pybind11.h>

#include <tuple>

#include "../cpu/dispatch.h"

namespace py = pybind11;
using namespace action;

namespace {

using Address = uintptr_t;
using MatrixTuple = std::tuple<Address, int, int64_t, int64_t, int64_t>;   // address, dtype, strides of G, rows, D
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t>;         // G, N, M, D
using ResourcesTuple = std::tuple<int, int64_t>;                           // threads, scratch bytes

Matrix matrix(const MatrixTuple& t) {
  return {reinterpret_cast<const void*>(std::get<0>(t)), static_cast<Dtype>(std::get<1>(t)), std::get<2>(t),
          std::get<3>(t), std::get<4>(t)};
}
Shape shape(const ShapeTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)}; }
Resources resources(const ResourcesTuple& t) { return {std::get<0>(t), std::get<1>(t)}; }
float* floats(Address p) { return reinterpret_cast<float*>(p); }
double* doubles(Address p) { return reinterpret_cast<double*>(p); }
int64_t* integers(Address p) { return reinterpret_cast<int64_t*>(p); }

void bind_contrast(ShapeTuple sizes, MatrixTuple student, MatrixTuple teacher, MatrixTuple bank, int64_t k,
                   Address query_labels, Address bank_labels, double student_temp, double teacher_temp, bool normalize,
                   Address kl, Address student_lse, Address teacher_lse, Address direction, Address similarity,
                   Address index, ResourcesTuple limits) {
  kernels().contrast({shape(sizes), matrix(student), matrix(teacher), matrix(bank), k, integers(query_labels),
                      integers(bank_labels), student_temp, teacher_temp, normalize, floats(kl), doubles(student_lse),
                      doubles(teacher_lse), floats(direction), floats(similarity), integers(index)},
                     resources(limits));
}

void bind_bank_gradient(ShapeTuple sizes, MatrixTuple student, MatrixTuple teacher, MatrixTuple bank, Address grad_kl,
                        Address kl, Address student_lse, Address teacher_lse, double student_temp, double teacher_temp,
                        bool normalize, Address grad_bank, ResourcesTuple limits) {
  kernels().bank_gradient({shape(sizes), matrix(student), matrix(teacher), matrix(bank), floats(grad_kl), floats(kl),
                           doubles(student_lse), doubles(teacher_lse), student_temp, teacher_temp, normalize,
                           floats(grad_bank)},
                          resources(limits));
}

void bind_gather(ShapeTuple sizes, MatrixTuple query, MatrixTuple positive, MatrixTuple bank, Address index, int64_t k,
                 double temp, bool normalize, Address loss, Address lse, ResourcesTuple limits) {
  kernels().gather({shape(sizes), matrix(query), matrix(positive), matrix(bank), integers(index), k, temp, normalize,
                    floats(loss), doubles(lse)},
                   resources(limits));
}

void bind_gather_gradient(ShapeTuple sizes, MatrixTuple query, MatrixTuple positive, MatrixTuple bank, Address index,
                          int64_t k, Address grad_similarity, Address grad_loss, Address lse, double temp,
                          bool normalize, Address grad_query, Address grad_positive, Address grad_bank,
                          ResourcesTuple limits) {
  kernels().gather_gradient({shape(sizes), matrix(query), matrix(positive), matrix(bank), integers(index), k,
                             floats(grad_similarity), floats(grad_loss), doubles(lse), temp, normalize,
                             floats(grad_query), floats(grad_positive), floats(grad_bank)},
                            resources(limits));
}

void bind_relation(int64_t groups, int64_t queries, int64_t rows, int64_t classes, int64_t k, Address query_labels,
                   Address thresholds, Address class_start, Address bank_rows, uint64_t seed, Address index,
                   ResourcesTuple limits) {
  relation_negatives({groups, queries, rows, classes, k, integers(query_labels), integers(thresholds),
                      integers(class_start), integers(bank_rows), seed, integers(index)},
                     resources(limits));
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of action_kernels (see csrc/cpu/kernels.h).";
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("contrast", bind_contrast, release());
  m.def("bank_gradient", bind_bank_gradient, release());
  m.def("gather", bind_gather, release());
  m.def("gather_gradient", bind_gather_gradient, release());
  m.def("relation_negatives", bind_relation, release());
  m.def("exp2", [](Address x, Address y, int64_t n) { kernels().exp2(floats(x), floats(y), n); }, release());
  m.def("variants", [] {
    py::list names;
    for (const Kernels* variant : variants()) names.append(variant->name);
    return names;
  });
  m.def("variant", [] { return kernels().name; });
  m.def("use_variant", use_variant);
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
