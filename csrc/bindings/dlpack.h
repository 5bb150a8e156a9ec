// The part of DLPack's stable C interface by which PyTorch describes a tensor without a Python object per property:
// https://github.com/dmlc/dlpack, version 1.3. Layouts and order are the standard's, so that no header of PyTorch is
// needed to build.
#pragma once

#include <cstdint>

namespace action::dlpack {

constexpr uint32_t kMajor = 1;  // layouts differ in another major version
constexpr int32_t kCpu = 1, kCuda = 2;
constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4;

struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

// The capsule `torch.Tensor.__dlpack_c_exchange_api__` points to one of these; PyTorch 2.10 or later has it.
struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_python;
  void* managed_to_python;
  // A view of the tensor, valid as long as it lives; -1 with a Python exception where there is none. May be null.
  int (*tensor_from_python)(void* tensor, Tensor* view);
  void* current_stream;
};

}  // namespace action::dlpack
