// Parameter structs that Python can fill by the names of their fields.
//
// A struct is declared once, as a macro that lists its fields, EXAMPLE_FIELDS(FIELD), each as FIELD(double, temp), and
// ACTION_PARAMS(ExampleParams, EXAMPLE_FIELDS) makes the struct and a table of its fields from it. Python declares the
// same names and types once more, as a NamedTuple; the two are compared when the library is loaded, and values are
// written where the table says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor.h"

namespace action {

// The types that a field may have, with the names that Python has for them.
template <class T>
struct KindOf;
template <>
struct KindOf<Tensor> {
  static constexpr const char* value = "Tensor";
};
template <>
struct KindOf<double> {
  static constexpr const char* value = "float";
};
template <>
struct KindOf<int64_t> {
  static constexpr const char* value = "int";
};
template <>
struct KindOf<bool> {
  static constexpr const char* value = "bool";
};

struct Field {
  const char* name;
  const char* kind;
  int64_t offset;
};

struct Layout {
  const Field* fields;
  int64_t count;
  int64_t size;  // bytes of the struct
};

// What a launcher returns.
enum Status : int32_t {
  kDone = 0,
  kBadArgument = 1,  // ValueError: a tensor is not what the kernel takes
  kFailed = 2,       // RuntimeError
  kOutOfMemory = 3,  // MemoryError
};

// Takes its parameter struct and a CUDA stream (null on the CPU).
using LauncherFunction = int32_t (*)(const void* params, void* stream);

// The bytes of workspace that a launch with these parameters takes, or minus a Status that is not kDone.
using WorkspaceFunction = int64_t (*)(const void* params);

struct Launcher {
  const char* name;
  LauncherFunction function;
  Layout layout;
  WorkspaceFunction workspace;  // null for a launcher that takes none
};

// All that a library offers. `tensor_size` and `launcher_size` reveal a library built with other headers.
struct Library {
  int64_t tensor_size, launcher_size;
  const Launcher* const* launchers;
  int64_t count;
  const char* (*last_error)();  // of this thread's last launch that did not return kDone
};

#define ACTION_DECLARE_FIELD(type, name) type name;
#define ACTION_DESCRIBE_FIELD(type, name) {#name, KindOf<type>::value, offsetof(Self, name)},

// The table is pure data: kernels are compiled once per instruction set, and the linker would take code that their
// objects have in common from any one of them.
#define ACTION_PARAMS(Struct, FIELDS)                                  \
  struct Struct {                                                      \
    FIELDS(ACTION_DECLARE_FIELD)                                       \
  };                                                                   \
  namespace fields_of_##Struct {                                       \
    using Self = Struct;                                               \
    static constexpr Field fields[] = {FIELDS(ACTION_DESCRIBE_FIELD)}; \
  }

#define ACTION_LAYOUT(Struct)                                                                                          \
  Layout {                                                                                                             \
    fields_of_##Struct::fields, sizeof fields_of_##Struct::fields / sizeof *fields_of_##Struct::fields, sizeof(Struct) \
  }

}  // namespace action
