// A call of an operator: its launches, one behind the other on a stream, and its memory. The same code is gone through
// twice: first for the size of the memory alone, with nothing launched.
#pragma once

#include "launch.cuh"
#include "workspace.cuh"

namespace action {

/// The names of a call's launches.
struct Launches {
  static constexpr int kMost = 16;

  const char* names[kMost];
  int count = 0;
};

/// Keeps those of the last call, for tests (library.cu).
void publish(const Launches& launches);

/// The launches of a call. Behind one that failed there are no others.
class Queue {
 public:
  Queue(void* stream, bool idle) : stream_(stream), idle_(idle) {}

  /// Enqueues kernel(arguments...) under the name.
  template <typename... Parameters, typename... Arguments>
  void enqueue(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
               const Arguments&... arguments) {
    if (idle_ || status_ != kDone) return;
    if (launches_.count < Launches::kMost) launches_.names[launches_.count++] = name;
    const cudaError_t error = launch(kernel, static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes),
                                     stream_, arguments...);
    if (error != cudaSuccess) status_ = fail(kFailed, name, cudaGetErrorString(error));
  }

  int32_t status() const { return status_; }
  const Launches& launches() const { return launches_; }

 private:
  Launches launches_;
  void* stream_;
  int32_t status_ = kDone;
  bool idle_;
};

struct Call {
  Queue queue;
  Workspace memory;

  /// A call that only finds out how much memory it needs.
  Call() : queue(nullptr, true), memory(nullptr) {}
  Call(void* stream, void* base) : queue(stream, false), memory(base) {}
};

/// An operator: checks its parameters and, where all fit, goes through its steps.
template <class Params>
using Operator = void (*)(const Params& params, Checks& check, Call& call);

template <class Params>
auto workspace_in(const Params& p, int) -> decltype(&p.workspace) {
  return &p.workspace;
}
template <class Params>
const Tensor* workspace_in(const Params&, long) {
  return nullptr;
}

/// The bytes of workspace that a call takes, or minus a status. All tensors are to be on the device of `anchor`.
template <class Params, Tensor Params::* anchor, Operator<Params> run>
int64_t workspace_of(const void* params) {
  const auto& p = *static_cast<const Params*>(params);
  Checks check(kDevice, p.*anchor);
  Call call;
  run(p, check, call);
  return check.passed() ? call.memory.needed() : -check.status();
}

/// A launcher as the table has it.
template <class Params, Tensor Params::* anchor, Operator<Params> run>
int32_t run_operator(const void* params, void* stream) {
  const auto& p = *static_cast<const Params*>(params);
  Checks check(kDevice, p.*anchor);
  Call sizes;
  run(p, check, sizes);
  const Tensor* workspace = workspace_in(p, 0);
  void* base = nullptr;
  if (const int64_t needed = sizes.memory.needed(); check.passed() && needed) {
    const int64_t bytes = check.size(*workspace, "workspace", 0, 1);
    base = check.contiguous<uint8_t>(*workspace, "workspace", {bytes});
    if (bytes < needed) check.refuse(*workspace, "workspace", "as large as the launcher says, at least", {needed});
  }
  if (!check.passed()) return check.status();
  Call call(stream, base);
  run(p, check, call);
  publish(call.queue.launches());
  return call.queue.status();
}

/// An entry of the library's table.
#define ACTION_OPERATOR(name, Params, anchor)                                 \
  {#name, run_operator<Params, &Params::anchor, name>, ACTION_LAYOUT(Params), \
   workspace_of<Params, &Params::anchor, name>}

}  // namespace action
