"""``python -m action_kernels``: what is installed, on which devices, and the state of every backend."""

from __future__ import annotations

import platform

import torch

from .backends import cpu, list_backends


def report() -> str:
    states = list_backends()
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    lines = [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        *(("device", device) for device in devices),
        *((f"backend {name}", state) for name, state in states.items()),
    ]
    if states["cpu"] == "ready":
        threads = "with OpenMP" if cpu.has_threads() else "without OpenMP: on one thread"
        lines.append(("cpu kernels", f"{cpu.variant()}, built {threads}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


if __name__ == "__main__":
    print(report())
