// What a launcher's result means.
#include "launch.cuh"

ACTION_EXPORT const char* action_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
