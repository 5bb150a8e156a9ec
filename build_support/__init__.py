"""Builds the native modules for setup.py, with ninja. PyTorch is not needed; a module that cannot be built is left out.

    modules     what is compiled: sources and flags of each module
    toolchain   where the compilers are
    ninja_file  the compilations as a ninja file: parallel, and again only what has changed
    build_ext   the command of setuptools that does it

Environment: CXX (compiler), CXXFLAGS (further flags of the CPU module), MAX_JOBS (parallel compilations),
ACTION_PORTABLE (if set, the CPU module has the portable kernels alone, none for AVX2 or AVX-512), ACTION_CUDA_ARCHS
(GPU architectures such as ``90`` or ``80 90``, the last one also as PTX for later ones; ``none`` leaves the CUDA module
out), CUDA_HOME, ACTION_SANITIZE (sanitizers to compile into the CPU module, such as ``address,undefined``; no CUDA
module then). ``.ci/sanitize`` builds with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the checkout and
runs the operator tests on that.
"""
