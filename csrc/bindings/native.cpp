// The border between Python and native code, for the kernels of this module and of every library that has a table of
// launchers (params/layout.h). Python hands over a tuple of parameters; each is written into the launcher's struct at
// the place that its table names. Kernels run without the interpreter lock.
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <vector>

#include "../cpu/dispatch.h"
#include "../params/layout.h"
#include "tensor_reader.h"

namespace py = pybind11;
using namespace action;

namespace {

constexpr int64_t kMostBytes = 4096;  // of a parameter struct

// A launcher as Python calls it.
class BoundLauncher {
 public:
  BoundLauncher(const Launcher& launcher, const char* (*last_error)()) : launcher_(launcher), last_error_(last_error) {
    if (launcher.layout.size > kMostBytes) throw std::invalid_argument(name() + " takes too many parameters");
    for (int64_t i = 0; i < launcher.layout.count; ++i) {
      const Field& field = launcher.layout.fields[i];
      fields_.push_back({kind_of(field.kind), field.offset});
    }
  }

  std::string name() const { return launcher_.name; }

  // Names and kinds of the parameters, in order.
  py::tuple parameters() const {
    py::tuple result(fields_.size());
    for (size_t i = 0; i < fields_.size(); ++i)
      result[i] = py::make_tuple(launcher_.layout.fields[i].name, launcher_.layout.fields[i].kind);
    return result;
  }

  void call(const py::tuple& values, uintptr_t stream) const {
    alignas(16) unsigned char params[kMostBytes];
    read(values, params);
    int32_t status;
    {
      const py::gil_scoped_release unlocked;
      status = launcher_.function(params, reinterpret_cast<void*>(stream));
    }
    if (status != kDone) raise(status);
  }

  // Bytes of workspace that a call with these parameters takes; their own workspace does not count.
  int64_t workspace(const py::tuple& values) const {
    if (!launcher_.workspace) return 0;
    alignas(16) unsigned char params[kMostBytes];
    read(values, params);
    const int64_t bytes = launcher_.workspace(params);
    if (bytes < 0) raise(static_cast<int32_t>(-bytes));
    return bytes;
  }

 private:
  enum class Kind { tensor, real, integer, truth };
  struct Place {
    Kind kind;
    int64_t offset;
  };

  static Kind kind_of(const std::string& kind) {
    if (kind == KindOf<Tensor>::value) return Kind::tensor;
    if (kind == KindOf<double>::value) return Kind::real;
    if (kind == KindOf<int64_t>::value) return Kind::integer;
    return Kind::truth;
  }

  void read(const py::tuple& values, unsigned char* params) const {
    std::memset(params, 0, static_cast<size_t>(launcher_.layout.size));
    if (values.size() != fields_.size()) throw py::type_error(name() + ": another number of parameters");
    for (size_t i = 0; i < fields_.size(); ++i) write(i, PyTuple_GET_ITEM(values.ptr(), i), params + fields_[i].offset);
  }

  void write(size_t i, PyObject* value, void* place) const {
    switch (fields_[i].kind) {
      case Kind::tensor: {
        auto* tensor = static_cast<Tensor*>(place);
        if (value == Py_None) {
          tensor->dims = Tensor::kNone;
        } else if (TensorReader::instance().is_tensor(value)) {
          TensorReader::instance().read(value, *tensor);
        } else {
          refuse(i, value);
        }
        return;
      }
      case Kind::real: put(i, value, PyFloat_AsDouble(value), place); return;
      case Kind::integer: put(i, value, static_cast<int64_t>(PyLong_AsLongLong(value)), place); return;
      case Kind::truth: put(i, value, PyObject_IsTrue(value) == 1, place); return;
    }
  }

  template <class T>
  void put(size_t i, PyObject* value, T converted, void* place) const {
    if (PyErr_Occurred()) {
      PyErr_Clear();
      refuse(i, value);
    }
    std::memcpy(place, &converted, sizeof converted);
  }

  [[noreturn]] void refuse(size_t i, PyObject* value) const {
    const Field& field = launcher_.layout.fields[i];
    throw py::type_error(name() + ": " + field.name + " must be a " + field.kind + ", got " + Py_TYPE(value)->tp_name);
  }

  [[noreturn]] void raise(int32_t status) const {
    const std::string text = name() + ": " + last_error_();
    if (status == kBadArgument) throw py::value_error(text);
    if (status == kOutOfMemory) {
      PyErr_SetString(PyExc_MemoryError, text.c_str());
      throw py::error_already_set();
    }
    throw std::runtime_error(text);
  }

  const Launcher launcher_;
  const char* (*last_error_)();
  std::vector<Place> fields_;
};

// The launchers of a library by name.
py::dict launchers(const Library& library) {
  if (library.tensor_size != sizeof(Tensor) || library.launcher_size != sizeof(Launcher))
    throw std::invalid_argument("the library was built from other sources: build it anew");
  py::dict result;
  for (int64_t i = 0; i < library.count; ++i)
    result[library.launchers[i]->name] = BoundLauncher(*library.launchers[i], library.last_error);
  return result;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  TensorReader::instance();
  m.doc() = "The CPU kernels of action_kernels, and the border to every native library.";
  py::class_<BoundLauncher>(m, "Launcher")
      .def_property_readonly("name", &BoundLauncher::name)
      .def_property_readonly("parameters", &BoundLauncher::parameters)
      .def("__call__", &BoundLauncher::call, py::arg("params"), py::arg("stream") = 0)
      .def("workspace", &BoundLauncher::workspace, py::arg("params"));
  m.def("cpu_launchers", [] { return launchers(cpu_library()); });
  m.def(
      "launchers_at", [](uintptr_t address) { return launchers(*reinterpret_cast<const Library*>(address)); },
      "Launchers of the library whose table lies at this address.");
  m.def("variants", [] {
    py::list names;
    for (const Variant* variant : variants()) names.append(variant->name);
    return names;
  });
  m.def("variant", [] { return variant().name; });
  m.def("use_variant", use_variant);
  m.def(
      "read_attributes_only", [](bool only) { TensorReader::instance().use_attributes(only); },
      "Read tensors by their attributes alone, as with a PyTorch that has no exchange interface.");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
