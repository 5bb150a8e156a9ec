"""The compiled kernels, examined without a GPU.

cuda_kernels    what the CUDA kernels' library has
executed        what its streaming kernels execute for a tile, against budgets
triton_kernels  what the Triton backend would launch
chips, calls, launches, sass: the GPUs, calls of the backend, its launches without a GPU, reading machine code
"""
