"""How long the published training should take on a GPU: ``python -m tools.estimates.training [--chip A100]``.

One step of each stage runs here, on the CPU, and is counted: PyTorch operations that start a kernel, the bytes of the
tensors that they read and write, and the flop of products and convolutions. A step takes as long as the slower one of
the host, which starts the kernels, and the device, which waits for memory or computes.

Assumptions: ``LAUNCH`` seconds for an operation from Python or the autograd engine; operations reach ``MEMORY`` of the
data sheet's bandwidth and convolutions ``TENSOR`` of its tensor rate; every operation is a kernel, and one of our
operators is ``KERNELS`` of them. Precision halves the bytes of the networks' maps where it is not fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from action.choices import METHODS
from action.cli import parse_config
from action.config import RunConfig, fill_in
from benchmarks.step_parts import make_trainer

from ..command import run
from .throughput import RATES, Rates

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = 4
LAUNCH, MEMORY, TENSOR, KERNELS = 8e-6, 0.7, 0.3, 10
NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_local_scalar_dense", "aten::detach", "aten::_unsafe_view")


@dataclass
class Count:
    """What a step asks of a machine."""

    kernels: int = 0
    bytes: int = 0
    flop: int = 0

    def seconds(self, rates: Rates, precision: str) -> float:
        """A step's time by the assumptions above."""
        half = precision != "fp32"
        memory = self.bytes / (2 if half else 1) / (MEMORY * rates.memory)
        products = self.flop / (TENSOR * rates.product_rate("16" if half else "tf32"))
        return max(LAUNCH * self.kernels, memory + products)


class Counter(TorchDispatchMode):
    """Counts kernels and bytes of the operations that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if not func.is_view and not name.startswith(NO_KERNEL):
            tensors = [x for x in _flat((args, result)) if isinstance(x, torch.Tensor)]
            self.count.kernels += KERNELS if name.startswith("action_kernels") else 1
            self.count.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _flat(part)]
    return [value]


def counted(step: Callable[[], Any]) -> Count:
    """What ``step`` asks of a machine."""
    counter, flops = Counter(), FlopCounterMode(display=False)
    with flops, counter:
        step()
    counter.count.flop = flops.get_total_flops()
    return counter.count


def published() -> RunConfig:
    """The published settings."""
    asked = parse_config(["--config", str(CONFIGS / "published.yaml")])
    assert asked.input.size is not None
    return fill_in(asked, "", "", (1.0, 1.0), asked.input.size)


def estimate(config: RunConfig) -> dict[str, Count]:
    """Counts of a step of each stage of ACTION, once its banks hold something."""
    trainer = make_trainer(config, CLASSES, "cpu")
    counts = {}
    for index, stage in enumerate(trainer.stages):
        trainer.stage_index = index
        trainer.train_step(stage, 0)
        counts[stage.name] = counted(lambda stage=stage: trainer.train_step(stage, 1))
    return counts


def main(chip: Literal[tuple(RATES)] = "H100", precision: Literal["fp32", "bf16", "fp16"] = "bf16") -> None:
    """Print a table of the three stages.

    Args:
        chip: of the data sheet.
        precision: of the training; fp32 takes PyTorch's permission for tf32.
    """
    config = published()
    print(f"{chip}, {precision}, {config.input.size[0]} x {config.input.size[1]} pixels: an estimate")
    print("| stage | kernels | GB | Gflop | ms a step | updates | minutes |\n|---|---|---|---|---|---|---|")
    total = 0.0
    for name, count in estimate(config).items():
        seconds, updates = count.seconds(RATES[chip], precision), getattr(config, name).iterations
        total += seconds * updates / 60
        print(
            f"| {name} | {count.kernels} | {count.bytes / 1e9:.2f} | {count.flop / 1e9:.0f} | {1e3 * seconds:.1f} | "
            f"{updates} | {seconds * updates / 60:.1f} |"
        )
    print(f"together {total:.0f} minutes for the stages {', '.join(METHODS['action'])}; validation is not counted")


if __name__ == "__main__":
    run(main)
