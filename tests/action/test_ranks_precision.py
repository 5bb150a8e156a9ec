"""Several processes train the run of one in every precision, each update on two batches, as closely as it rounds."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_ranks import all_updates, new_trainer

from action.ranks import ALONE, Ranks

FLAGS = ("--accumulate=2", "--optimizer.lr=0.0003")  # at the usual rate rounding grows with every update
SHARES = (5.0, 1.0)

APART = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Of the way that the weights have gone. In 16 bits each process rounds the gradient of its share by itself."""


def moved(ranks, precision, data_root, output):
    """How far every weight has gone in a few updates of every stage, and the scale of the loss after them."""
    trainer = new_trainer(ranks, "action", data_root, output, *FLAGS, f"--precision={precision}", dtype=torch.float32)
    before = weights(trainer)
    all_updates(trainer)
    return weights(trainer) - before, trainer.update.scaler.get_scale()


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.learner.trained()])


def _process(rank, file, data_root, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=len(SHARES))
    try:
        for precision in APART:
            result = moved(Ranks(rank, len(SHARES), SHARES), precision, data_root, folder)
            torch.save(result, folder / f"{precision}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def several(acdc_root, tmp_path_factory):
    """Where each process of a run in each precision has left what it found."""
    folder = tmp_path_factory.mktemp("several")
    mp.start_processes(_process, (folder / "rendezvous", acdc_root, folder), len(SHARES), start_method="spawn")
    return folder


@pytest.mark.parametrize("precision", APART)
def test_several_processes_move_the_weights_as_one_does(precision, several, acdc_root, tmp_path):
    (ours, scale), (others, another) = (torch.load(several / f"{precision}-{rank}.pt") for rank in range(len(SHARES)))
    assert torch.equal(ours, others) and scale == another
    alone, expected = moved(ALONE, precision, acdc_root, tmp_path)
    assert scale == expected
    assert (ours - alone).norm() <= APART[precision] * alone.norm()
    if precision != "fp32":
        assert not torch.equal(alone, moved(ALONE, "fp32", acdc_root, tmp_path)[0])
