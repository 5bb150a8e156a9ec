#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace action {
namespace {

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#ifdef ACTION_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&kernels_avx512());
  if (avx2) found.push_back(&kernels_avx2());
#endif
  found.push_back(&kernels_generic());
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{variants().front()};
  return chosen;
}

}  // namespace

const std::vector<const Kernels*>& variants() {
  static const std::vector<const Kernels*> found = detect();
  return found;
}

const Kernels& kernels() { return *current(); }

void use_variant(const std::string& name) {
  std::string known;
  for (const Kernels* variant : variants()) {
    if (name == variant->name) {
      current() = variant;
      return;
    }
    known += known.empty() ? variant->name : std::string(", ") + variant->name;
  }
  throw std::invalid_argument("variant '" + name + "' does not run here; choose one of: " + known);
}

}  // namespace action
