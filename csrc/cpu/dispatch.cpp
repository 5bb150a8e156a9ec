#include "dispatch.h"

#include <array>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "../params/checks.h"

namespace action {
namespace {

constexpr size_t kLaunchers = 11;

std::vector<const Variant*> detect() {
  std::vector<const Variant*> found;
#ifdef ACTION_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&variant_avx512());
  if (avx2) found.push_back(&variant_avx2());
#endif
  found.push_back(&variant_generic());
  return found;
}

std::atomic<const Variant*>& current() {
  static std::atomic<const Variant*> chosen{variants().front()};
  return chosen;
}

template <size_t I>
int32_t in_use(const void* params, void* stream) {
  return variant().launchers[I].function(params, stream);
}

template <size_t... I>
std::array<Launcher, kLaunchers> dispatched(std::index_sequence<I...>) {
  const Launcher* any = variant_generic().launchers;
  return {Launcher{any[I].name, in_use<I>, any[I].layout}...};
}

template <size_t... I>
std::array<const Launcher*, kLaunchers> addresses(const std::array<Launcher, kLaunchers>& launchers,
                                                  std::index_sequence<I...>) {
  return {&launchers[I]...};
}

}  // namespace

const std::vector<const Variant*>& variants() {
  static const std::vector<const Variant*> found = detect();
  return found;
}

const Variant& variant() { return *current(); }

void use_variant(const std::string& name) {
  std::string known;
  for (const Variant* variant : variants()) {
    if (name == variant->name) {
      current() = variant;
      return;
    }
    known += known.empty() ? variant->name : std::string(", ") + variant->name;
  }
  throw std::invalid_argument("variant '" + name + "' does not run here; choose one of: " + known);
}

const Library& cpu_library() {
  if (variant_generic().count != kLaunchers) throw std::logic_error("kLaunchers is not the number of launchers");
  static const auto launchers = dispatched(std::make_index_sequence<kLaunchers>());
  static const auto table = addresses(launchers, std::make_index_sequence<kLaunchers>());
  static const Library library{sizeof(Tensor), sizeof(Launcher), table.data(), kLaunchers, last_error};
  return library;
}

}  // namespace action
