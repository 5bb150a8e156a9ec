"""Tools for developing the kernels; run from a checkout.

tuning        measure on a GPU and write what is the fastest there into the package
docs          write the pages and pictures of the documentation that follow from code
machine_code  look into the compiled kernels: registers, spills, occupancy, instructions
estimates     how long kernels and the published training should take, from data sheets and machine code
"""
