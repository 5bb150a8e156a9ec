"""The estimate of a training's time: what is counted, and what a step's time follows from."""

from __future__ import annotations

import torch

from action.cli import parse_config
from action.config import fill_in
from tools.estimates.throughput import RATES
from tools.estimates.training import KERNELS, LAUNCH, Count, counted, estimate, published

SMALL = [
    "--model.channels=[4,6,8]",
    "--model.embedding=8",
    "--anatomical_contrast.queries=8",
    "--anatomical_contrast.keys=8",
    "--anatomical_contrast.negatives_per_query=8",
]


def test_kernels_bytes_and_flop_are_counted_and_views_are_not() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    count = counted(lambda: x.transpose(0, 1).detach()[:1] + 1.0)
    assert (count.kernels, count.bytes, count.flop) == (1, 4 * (2 * 64 + 2 * 64), 0)
    count = counted(lambda: torch.conv2d(x, weight, padding=1))
    assert count.flop == 2 * 2 * 64 * 5 * 3 * 9
    assert (count.kernels, count.bytes) == (1, 4 * (x.numel() + weight.numel() + 2 * 5 * 64))


def test_the_backward_pass_counts() -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    forward = counted(lambda: weight @ weight)
    both = counted(lambda: (weight @ weight).sum().backward())
    assert both.flop == 3 * forward.flop > 0


def test_a_step_takes_as_long_as_its_slower_side() -> None:
    rates = RATES["H100"]
    assert Count(kernels=1000, bytes=8, flop=8).seconds(rates, "bf16") == 1000 * LAUNCH
    full, half = (Count(1, 10**12, 10**14).seconds(rates, precision) for precision in ("fp32", "bf16"))
    assert 1.9 < full / half < 2.1 and half > 0.2


def test_every_stage_is_estimated() -> None:
    counts = estimate(fill_in(parse_config(SMALL), "", "", (1.0, 1.0), (64, 64)))
    assert list(counts) == ["global_distillation", "local_distillation", "anatomical_contrast"]
    kernels = [count.kernels for count in counts.values()]
    assert KERNELS < kernels[0] < kernels[1] < kernels[2]
    assert all(count.flop > 10**7 for count in counts.values())


def test_the_published_settings_are_those_of_the_configuration() -> None:
    config = published()
    assert config.input.size == (256, 256) and config.anatomical_contrast.iterations == 30000
