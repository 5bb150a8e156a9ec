// Included before each .cu file when it is compiled for the host: CUDA's keywords in terms of C++.
#pragma once

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define ACTION_CUDA_HOST 1
#define __CUDACC__ 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ thread_local  // static in a function, yet allowed after `extern`
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))  // the standard headers above use the bare name
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "cuda_runtime.h"
