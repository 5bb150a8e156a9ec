// Runs a grid: its blocks one after another.
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "../include/cuda_runtime.h"
#include "state.h"

namespace cuda_host {
namespace {

std::mutex one_at_a_time;  // backward passes launch from threads of their own
cudaError_t last_error = cudaSuccess;
std::map<const void*, int> shared_limits;  // raised by cudaFuncSetAttribute
constexpr int kDefaultSharedLimit = 48 << 10;
std::string repeated;  // part of the names of kernels that run twice; empty: none do

bool valid(const Launch& wanted) {
  const dim3 &grid = wanted.grid, &threads = wanted.block;
  uint64_t number = uint64_t{threads.x} * threads.y * threads.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return false;
  return number && number <= 1024 && threads.z <= 64;
}

void begin_block(uint3 index) {
  unsigned count = threads();
  block = Block{};
  block.index = index;
  block.started = block.ordered = ++now;
  block.warps.assign((count + kWarpSize - 1) / kWarpSize, Warp{});
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = thread(i);
    t.exited = false;
    t.number = i;
    t.index = {i % launch->block.x, i / launch->block.x % launch->block.y, i / (launch->block.x * launch->block.y)};
    t.operation = nullptr;
    t.copies.clear();
    t.groups = 0;
    block.warps[i / kWarpSize].present |= 1u << (i % kWarpSize);
  }
  begin_shared();
}

// All remaining threads wait for others: says for whom.
void report_deadlock() {
  const Thread* waiting = nullptr;
  for (unsigned i = 0; i < threads() && !waiting; ++i) {
    if (thread(i).operation) waiting = &thread(i);
  }
  std::string missing;
  for (unsigned i = 0; i < threads() && missing.empty(); ++i) {
    const Thread& other = thread(i);
    bool named = !waiting->mask || (i / kWarpSize == waiting->number / kWarpSize && waiting->mask >> i % kWarpSize & 1);
    bool together = other.operation && other.mask == waiting->mask && other.site.line == waiting->site.line;
    if (!named || together) continue;
    missing = other.exited ? name(other) + " has exited"
                           : name(other) + " waits in " + other.operation + " at " + place(other.site);
  }
  set_report(format("deadlock: %s waits in %s at %s, mask 0x%08x; ", name(*waiting).c_str(), waiting->operation,
                    place(waiting->site).c_str(), waiting->mask) +
                 missing,
             nullptr);
}

bool run_block(uint3 index) {
  begin_block(index);
  if (!run_threads()) return false;
  if (block.exited == threads()) return true;
  report_deadlock();
  for (unsigned i = 0; i < threads(); ++i) thread(i).started = false;
  return false;
}

bool run_grid() {
  dim3 grid = launch->grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        if (!run_block({x, y, z})) return false;
      }
    }
  }
  return true;
}

}  // namespace

int run(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes, void (*invoke)(void*), void* arguments,
        size_t arguments_bytes) {
  Launch wanted{kernel, grid, threads, shared_bytes, invoke, arguments, arguments_bytes};
  std::lock_guard<std::mutex> lock(one_at_a_time);
  auto limit = shared_limits.find(wanted.kernel);
  size_t allowed = limit == shared_limits.end() ? kDefaultSharedLimit : limit->second;
  if (!valid(wanted)) return last_error = cudaErrorInvalidConfiguration;
  if (wanted.shared_bytes > allowed) return last_error = cudaErrorInvalidValue;
  launch = &wanted;
  begin_memory();
  bool good = run_grid();
  if (good && !repeated.empty() && kernel_name().find(repeated) != std::string::npos) {
    begin_memory();
    good = run_grid();
  }
  launch = nullptr;
  current = nullptr;
  return last_error = good ? cudaSuccess : cudaErrorLaunchFailure;
}

int allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kSharedLimit) return cudaErrorInvalidValue;
  shared_limits[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace cuda_host

// From here on kernels with this in their names run twice; with an empty name none do.
extern "C" __attribute__((visibility("default"))) void cuda_host_repeat(const char* name) {
  cuda_host::repeated = name;
}

cudaError_t cudaGetLastError() { return std::exchange(cuda_host::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return cuda_host::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return cuda_host::report();
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock: return *value = cuda_host::kDefaultSharedLimit, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return *value = cuda_host::kSharedLimit, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return *value = cuda_host::kSharedLimit + 1024, cudaSuccess;
    case cudaDevAttrMultiProcessorCount: return *value = 4, cudaSuccess;  // few, so that small inputs fill them, too
    case cudaDevAttrComputeCapabilityMajor: return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = 0, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}
