"""How long kernels should take, from data sheets and machine code. Nothing here is measured."""
