"""What the hardware does at its best: ``python -m benchmarks.rates [--device cuda]``.

Products at the rate of PyTorch's BLAS, exponentials as fast as they come without waiting for memory, copies. Operators
are held against the time of the work that cannot be saved, at these rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli

from .table import describe


def wait(device: str) -> None:
    """Until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


class Floor:
    """Time of the work that cannot be saved: products, and exponentials on values in registers or in the cache.

    A program whose products or exponentials are faster than PyTorch's gets below it.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._multiply_adds = max(product_rate(device, kind) for kind in {dtype, torch.float32})
        self._exponentials = exponential_rate(device)

    def milliseconds(self, multiply_adds: int, exponentials: int) -> float:
        """Of both, one after the other."""
        return multiply_adds / self._multiply_adds + exponentials / self._exponentials


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds in a millisecond, at the size at which PyTorch's BLAS does best."""
    return max(_product_rate(device, dtype, length) for length in ((512, 1536) if device == "cpu" else (8192,)))


def _product_rate(device: str, dtype: torch.dtype, length: int) -> float:
    x = torch.randn(length, length, device=device).to(dtype)
    out = torch.empty_like(x)
    calls = max(1, 1536**3 // length**3)

    def run() -> None:
        for _ in range(calls):
            torch.mm(x, x, out=out)

    return calls * length**3 / _fastest(run, device)


def exponential_rate(device: str) -> float:
    """Exponentials in a millisecond, in float32."""
    if device == "cuda":
        return _exponentials_in_registers()
    elements, calls = 2**15 * torch.get_num_threads(), 128  # the fewest that all threads share, and in their caches
    x = torch.rand(elements)
    out = torch.empty_like(x)

    def run() -> None:
        for _ in range(calls):
            torch.exp(x, out=out)

    return calls * elements / _fastest(run, device)


def _exponentials_in_registers() -> float:
    """Of a GPU: PyTorch's own waits for memory, ten times as long as the exponentials take."""
    from .exponentials import repeat

    x = torch.rand(2**22, device="cuda")
    rounds = 512
    return rounds * x.numel() / _fastest(lambda: repeat(x, rounds), "cuda")


def copy_rate(device: str) -> float:
    """Bytes read and written in a millisecond."""
    x = torch.zeros(2**26 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    out = torch.empty_like(x)
    return 2 * x.numel() / _fastest(lambda: out.copy_(x), device)


def _fastest(function: Callable[[], object], device: str) -> float:
    """Milliseconds of the fastest of five runs after one that does not count."""
    spans = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        spans.append(1000 * (time.perf_counter() - start))
    return min(spans[1:])


def main(device: str = "cpu") -> None:
    """Print the rates.

    Args:
        device: cpu or cuda.
    """
    print(", ".join(str(value) for value in describe(device).values()))
    kinds = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16, torch.float16]
    for kind in kinds:
        print(f"{str(kind).removeprefix('torch.')} products: {2e-9 * product_rate(device, kind):.2f} TFLOP/s")
    print(f"exponentials: {1e-9 * exponential_rate(device):.4f} T/s")
    print(f"copies: {1e-9 * copy_rate(device):.3f} TB/s, read and written")


if __name__ == "__main__":
    auto_cli(main)
