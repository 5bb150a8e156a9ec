"""Several processes train the run of one: their layers, their batches, their weights."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from action.cli import parse_config
from action.data.batches import SlicePool
from action.errors import InputError
from action.experiment import load_data, resolve
from action.ranks import ALONE, OtherRankFailed, Ranks
from action.ranks.layers import spread
from action.run_folder import RunFolder
from action.stages import make_learner
from action.stages.base import TrainingData
from action.trainer import Trainer

SHARES = {"even": (1.0, 1.0), "uneven": (5.0, 1.0), "one without slices": (4.0, 0.0, 2.0)}


def _process(rank, check, file, weights, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=len(weights))
    try:
        check(Ranks(rank, len(weights), weights), *arguments)
    finally:
        dist.destroy_process_group()


def on_processes(check, tmp_path: Path, weights, *arguments):
    file = tmp_path / f"rendezvous-{check.__name__}"
    mp.start_processes(_process, (check, file, weights, arguments), len(weights), start_method="spawn")


def test_shares_are_neighbours_and_cover_the_batch():
    assert ALONE.sizes(7) == [7]
    assert Ranks(0, 3).sizes(7) == [2, 3, 2] and Ranks(0, 4).sizes(2) == [0, 1, 1, 0]
    assert Ranks(0, 2, (5, 1)).sizes(6) == [5, 1] and Ranks(0, 3, (4, 0, 2)).sizes(6) == [4, 0, 2]
    x = torch.arange(7)
    assert torch.equal(torch.cat([Ranks(rank, 3).own(x) for rank in range(3)]), x)


class Layers(nn.Module):
    """Batch norm of maps and of rows, dropout, and convolutions around them."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(0.3)
        )
        self.rows = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 5), nn.BatchNorm1d(5))

    def forward(self, x):
        return self.rows(self.maps(x.contiguous(memory_format=torch.channels_last)))


def layers_see_one_batch(ranks):
    torch.manual_seed(1)
    alone, x = Layers().double(), torch.randn(6, 2, 6, 6, dtype=torch.float64) * 3 + 100
    shared, weight = copy.deepcopy(alone), torch.randn(6, 5, dtype=torch.float64)
    spread(shared, ranks)
    assert list(shared.state_dict()) == list(alone.state_dict())
    for _ in range(2):
        torch.manual_seed(2)
        expected = alone(x)
        torch.manual_seed(2)
        found = ranks.joined(shared(ranks.own(x)))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    ranks.sum_gradients(shared.parameters())
    for ours, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(shared.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    alone.eval()
    shared.eval()
    torch.testing.assert_close(shared(x), alone(x), rtol=1e-12, atol=1e-12)


def blocks_fail_together(ranks):
    with pytest.raises(InputError if ranks.rank == 1 else OtherRankFailed), ranks.together():
        if ranks.rank == 1:
            raise InputError("one")
    with pytest.raises(InputError if ranks.rank == 0 else OtherRankFailed), ranks.together():
        raise InputError("all: the first says it")
    went = []
    with pytest.raises(InputError if ranks.first else OtherRankFailed), ranks.in_turn():
        went.append(ranks.rank)
        raise InputError("the first")
    assert went == [0] * ranks.first
    with ranks.in_turn():
        pass
    assert ranks.share_out(list("abcde"), str.upper) == list("ABCDE") and ranks.share_out([], str.upper) == []


@pytest.mark.parametrize("weights", SHARES.values(), ids=SHARES)
def test_layers_see_the_shares_as_one_batch(weights, tmp_path):
    on_processes(layers_see_one_batch, tmp_path, weights)


def test_what_fails_on_one_process_fails_on_all(tmp_path):
    on_processes(blocks_fail_together, tmp_path, (1.0, 1.0, 1.0))


FLAGS = [
    "--labeled=2",
    "--model.channels=[4,6,8]",
    "--model.dropout=[0.1,0.0,0.2]",
    "--model.embedding=8",
    "--input.size=[64,64]",
    "--device=cpu",
    "--baseline.iterations=4",
    "--global_distillation.iterations=4",
    "--local_distillation.iterations=4",
    "--anatomical_contrast.iterations=4",
    "--evaluation.every=2",
]


def updates(ranks, flags, output):
    """The networks, heads and banks after a few updates of every stage in double precision, saved by each process."""
    config = resolve(parse_config([*flags, f"--output={output}"]))
    data = load_data(config)
    torch.manual_seed(0)
    learner = make_learner(config, len(data.dataset.class_names), ranks).double().train()
    pools = (SlicePool(cases, labels=labels, seed=labels) for cases, labels in ((data.labeled, 1), (data.unlabeled, 0)))
    trainer = Trainer(
        config, learner, TrainingData(*pools), [], data.dataset.class_names, RunFolder(output), ranks=ranks
    )
    for index, stage in enumerate(trainer.stages):
        trainer.stage_index, single = index, stage.batch
        stage.batch = lambda *a, single=single: {name: x.double() for name, x in single(*a).items()}
        for trainer.stage_step in range(stage.iterations):
            trainer.train_step(stage, trainer.stage_step)
    torch.save(learner.state_dict(), output.with_name(f"{output.name}-{ranks.rank}.pt"))


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("action", SHARES["uneven"]),
        ("action", SHARES["one without slices"]),
        ("mean-teacher", SHARES["one without slices"]),
        ("supervised", SHARES["even"]),
    ],
)
def test_several_processes_make_the_updates_of_one(method, weights, acdc_root, tmp_path):
    flags = [*FLAGS, f"--data={acdc_root}", f"--method={method}"]
    updates(ALONE, flags, tmp_path / "one")
    on_processes(updates, tmp_path, weights, flags, tmp_path / "several")
    alone, first, *others = (
        torch.load(tmp_path / f"{name}.pt") for name in ("one-0", *(f"several-{i}" for i in range(len(weights))))
    )
    assert list(alone) == list(first)
    for name, value in alone.items():
        assert all(torch.equal(first[name], other[name]) for other in others), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9, msg=lambda text, at=name: f"{at}: {text}")


def test_torchrun_trains_one_run_and_goes_on_with_another_number(acdc_root, tmp_path):
    def command(processes, *more):
        run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "action.train"]
        flags = [*FLAGS, f"--data={acdc_root}", f"--output={tmp_path / 'run'}", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*run, *flags], capture_output=True, text=True, env=environment, timeout=300)

    done = command(2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("labelled (") == 1 and done.stdout.count("written to") == 1
    assert done.stderr.count("local_distillation (2/3): 4 of 4") == 1
    run = RunFolder(tmp_path / "run")
    assert len(run.metrics.read_text().splitlines()) == 1 + 12 and run.summary.is_file()
    refused = command(2)
    assert refused.returncode != 0 and refused.stderr.count("error: ") == 1, refused.stderr
    assert "exists: continue it with --resume" in refused.stderr
    for path in (run.summary, run.latest):
        path.unlink()  # as killed before the last checkpoint
    done = command(3, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(run.metrics.read_text().splitlines()) == 1 + 12 and run.summary.is_file()
