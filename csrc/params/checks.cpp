#include "checks.h"

#include <cstdarg>
#include <cstdio>

namespace action {
namespace {

constexpr int kErrorBytes = 512;
thread_local char error_text[kErrorBytes];

// Appends to this thread's error text and cuts off what does not fit.
class Text {
 public:
  Text() { *error_text = 0; }

  void add(const char* format, ...) {
    if (used_ >= kErrorBytes) return;
    va_list values;
    va_start(values, format);
    used_ += std::vsnprintf(error_text + used_, kErrorBytes - used_, format, values);
    va_end(values);
  }

  void list(const int64_t* values, int count) {
    add("[");
    for (int i = 0; i < count; ++i) add(i ? ", %lld" : "%lld", static_cast<long long>(values[i]));
    add("]");
  }

 private:
  int used_ = 0;
};

int64_t count(const Tensor& x) {
  int64_t product = 1;
  for (int i = 0; i < x.dims; ++i) product *= x.sizes[i];
  return product;
}

bool shaped(const Tensor& x, Sizes sizes) {
  if (x.dims != static_cast<int>(sizes.size()) || x.dims > Tensor::kMostDims) return false;
  int dim = 0;
  for (int64_t size : sizes)
    if (x.sizes[dim++] != size) return false;
  return true;
}

bool dense(const Tensor& x) {
  int64_t step = 1;
  for (int i = x.dims; i-- > 0;) {
    if (x.sizes[i] != 1 && x.strides[i] != step && count(x) > 0) return false;
    step *= x.sizes[i];
  }
  return true;
}

}  // namespace

const char* last_error() { return error_text; }

int32_t fail(Status status, const char* text) {
  Text().add("%s", text);
  return status;
}

int32_t fail(Status status, const char* where, const char* what) {
  Text().add("%s: %s", where, what);
  return status;
}

Checks::Checks(Device device, const Tensor& anchor) : device_(device), device_index_(anchor.device_index) {}

int64_t Checks::size(const Tensor& x, const char* name, int dim, int dims) {
  if (x.dims == dims) return x.sizes[dim];
  char expected[64];
  std::snprintf(expected, sizeof expected, "a tensor with %d dimensions", dims);
  refuse(x, name, expected);
  return 0;
}

void Checks::rows(const Tensor& x, const char* name, Sizes sizes) {
  const bool floating = x.dtype == Dtype::float32 || x.dtype == Dtype::float16 || x.dtype == Dtype::bfloat16;
  if (!floating || !shaped(x, sizes) || !placed(x)) refuse(x, name, "float32, float16 or bfloat16", sizes);
}

Shape Checks::shape(const Tensor& query, const char* name, const Tensor& bank) {
  const int64_t g = size(query, name, 0, 3), n = size(query, name, 1, 3), d = size(query, name, 2, 3);
  const int64_t m = size(bank, "bank", 1, 3);
  rows(query, name, {g, n, d});
  rows(bank, "bank", {g, m, d});
  return {g, n, m, d};
}

void* Checks::contiguous(const Tensor& x, const char* name, Dtype dtype, Sizes sizes) {
  if (x.dtype == dtype && shaped(x, sizes) && dense(x) && placed(x)) return x.data;
  char expected[32];
  std::snprintf(expected, sizeof expected, "contiguous %s", name_of(dtype));
  refuse(x, name, expected, sizes);
  return nullptr;
}

void Checks::refuse(const Tensor& x, const char* name, const char* expected, Sizes sizes) {
  if (!passed_) return;
  passed_ = false;
  Text text;
  text.add("%s must be %s", name, expected);
  if (sizes.size()) {
    text.add(" ");
    text.list(sizes.begin(), static_cast<int>(sizes.size()));
  }
  text.add(", got ");
  if (!x.given()) return text.add("None");
  const int shown = x.dims < Tensor::kMostDims ? x.dims : Tensor::kMostDims;
  text.add("%s ", name_of(x.dtype));
  text.list(x.sizes, shown);
  text.add(" with strides ");
  text.list(x.strides, shown);
  if (!placed(x)) text.add(x.data ? " in another device's memory" : " without memory");
}

void Checks::require(bool holds, const char* text) {
  if (holds || !passed_) return;
  passed_ = false;
  Text().add("%s", text);
}

bool Checks::placed(const Tensor& x) const {
  return x.device == device_ && x.device_index == device_index_ && (x.data || count(x) == 0);
}

}  // namespace action
