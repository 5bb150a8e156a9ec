"""Writes the definition of every array that objects declare as ``extern __shared__``: one memory under all the names.

Usage: dynamic_shared.py OUTPUT.s OBJECT...
"""

from __future__ import annotations

import subprocess
import sys

LIMIT = 232448  # kSharedLimit in runtime/runtime.h
MARGIN = 64 << 10  # kMargin in runtime/memory.cpp


def undefined_thread_locals(objects: list[str]) -> list[str]:
    listing = subprocess.run(["readelf", "-sW", *objects], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return sorted({row[7] for row in rows if len(row) == 8 and row[3] == "TLS" and row[6] == "UND"})


def assembly(names: list[str]) -> str:
    lines = ['.section .tbss,"awT",%nobits', ".balign 1024", f".zero {MARGIN}"]
    for name in ["cuda_host_dynamic_shared", *names]:
        lines += [f".globl {name}", f".hidden {name}", f".type {name}, %tls_object", f"{name}:"]
    return "\n".join([*lines, f".zero {LIMIT + MARGIN}", '.section .note.GNU-stack,"",%progbits', ""])


if __name__ == "__main__":
    output, *objects = sys.argv[1:]
    with open(output, "w") as file:
        file.write(assembly(undefined_thread_locals(objects)))
