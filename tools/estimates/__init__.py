"""How long kernels and a training should take, from data sheets, machine code and counted work: nothing is measured."""
