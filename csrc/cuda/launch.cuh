// Launching kernels from launchers that C can call.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "../params/checks.h"

/// A function that is found by name in the library, which hides everything else.
#define ACTION_EXPORT extern "C" __attribute__((visibility("default")))

namespace action {

/// The kind of device that tensors must be on; for tests, the kernels can be compiled for the CPU.
#ifdef ACTION_CUDA_HOST
constexpr Device kDevice = Device::cpu;
#else
constexpr Device kDevice = Device::cuda;
#endif

/// Enqueues kernel(arguments...); `shared_bytes` of dynamic shared memory may be all that the device has for a block.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                   Arguments&&... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // it is returned, so it must not surface in a later call
      return error;
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace action
