"""Several processes train the run of one: their layers, their batches, their weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from action.cli import parse_config
from action.config import fill_in
from action.data.batches import SlicePool
from action.errors import InputError
from action.experiment import load_data, resolve
from action.ranks import ALONE, OtherRankFailed, Ranks
from action.ranks.layers import spread
from action.ranks.start import StartedRanks
from action.run_folder import RunFolder
from action.stages import make_learner
from action.stages.base import TrainingData
from action.trainer import Trainer
from action.update import Update

# Fifty updates: rounding grows in each of them, and a choice that flips by it would not be missed.
LONG = tuple(
    f"--{stage}.iterations={count}"
    for stage, count in (("global_distillation", 17), ("local_distillation", 17), ("anatomical_contrast", 16))
)
ANOTHER_NETWORK = (
    "--model.network=monai.networks.nets.BasicUNet",
    '--model.arguments={"features": [4, 4, 6, 6, 8, 5], "norm": "batch", "dropout": 0.2}',
    "--model.feature_layers=[down_4,upcat_4,upcat_3,upcat_2,upcat_1]",
)
RUNS = {  # by shares: methods, and what they are run with
    (5.0, 1.0): {
        "action": LONG,
        "supervised": (),
        "pseudo-labels": (),
        "unimatch": ANOTHER_NETWORK,
    },
    (3.0, 0.0, 2.0, 1.0): {
        "action": (*LONG, "--anatomical_contrast.selection=hardest"),
        "action++": ("--accumulate=2",),
        "mean-teacher": (),
        "copy-paste": (),
        "unimatch": (),
    },
}


def _process(rank, file, weights, data, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=len(weights))
    try:
        ranks = Ranks(rank, len(weights), weights)
        layers_see_one_batch(ranks)
        blocks_fail_together(ranks)
        an_overflow_on_one_process_is_one_on_all(ranks)
        for method, flags in RUNS[weights].items():
            updates(ranks, method, data, folder / method, *flags)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("weights", RUNS, ids=("uneven shares", "one without slices"))
def test_several_processes_are_as_one(weights, acdc_root, tmp_path):
    """All checks in one start of the processes, which takes longer than they do."""
    folder = tmp_path / "several"
    folder.mkdir()
    arguments = tmp_path / "rendezvous", weights, acdc_root, folder
    mp.start_processes(_process, arguments, len(weights), start_method="spawn")
    for method, flags in RUNS[weights].items():
        updates(ALONE, method, acdc_root, tmp_path / method, *flags)
        files = [tmp_path / f"{method}-0.pt", *(folder / f"{method}-{rank}.pt" for rank in range(len(weights)))]
        alone, first, *others = map(torch.load, files)
        assert list(alone) == list(first)
        for name, value in alone.items():
            assert all(torch.equal(first[name], other[name]) for other in others), name
            assert (first[name] - value).double().norm() <= 1e-9 * value.double().norm(), (method, name)


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
        bare = nn.BatchNorm2d(4, affine=False, momentum=None)
        momentary = nn.BatchNorm2d(4, track_running_stats=False)
        self.more = nn.Sequential(bare, nn.Dropout2d(0.3), nn.Conv2d(4, 4, 1), momentary)
        self.rows = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 5), nn.BatchNorm1d(5))

    def forward(self, x):
        return self.rows(self.more(self.maps(x.contiguous(memory_format=torch.channels_last))))


def layers_see_one_batch(ranks):
    torch.manual_seed(1)
    alone, x = Layers().double(), torch.randn(6, 2, 6, 6, dtype=torch.float64) * 3 + 100
    shared, weight = copy.deepcopy(alone), torch.randn(6, 5, dtype=torch.float64)
    seen = []
    for layer in (shared.maps[1], shared.more[1]):
        layer.register_forward_hook(lambda *_: seen.append(1))
    spread(shared, ranks)
    assert list(shared.state_dict()) == list(alone.state_dict())
    for _ in range(2):
        torch.manual_seed(2)
        expected = alone(x)
        torch.manual_seed(2)
        found = ranks.joined(shared(ranks.own(x)))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(seen) == 4
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


def test_a_layer_that_processes_cannot_share_is_named():
    spread(nn.Sequential(nn.SyncBatchNorm(3)), ALONE)
    with pytest.raises(
        InputError, match=r"the layer 'up.1' is of the kind AlphaDropout, .*: take one of BatchNorm1d, .*Dropout2d"
    ):
        spread(nn.ModuleDict({"up": nn.Sequential(nn.Identity(), nn.AlphaDropout(0.1))}), Ranks(0, 2))


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
    with pytest.raises(InputError if ranks.first else OtherRankFailed), ranks.alike():
        raise InputError("on all")
    assert ranks.first_says(ranks.rank) == 0
    ranks.compare(seed=3, step=5)
    with pytest.raises(InputError if ranks.rank == 1 else OtherRankFailed) as raised:
        ranks.compare(seed=3, step=5 + (ranks.rank == 1))
    assert ranks.rank != 1 or "rank 1 has other step than rank 0" in str(raised.value)
    assert ranks.share_out(list("abcde"), str.upper) == list("ABCDE") and ranks.share_out([], str.upper) == []


def an_overflow_on_one_process_is_one_on_all(ranks):
    """All step over the update and scale the next loss by the same."""
    weight = nn.Parameter(torch.ones(3))
    config = fill_in(parse_config(["--precision=fp16"]), "data", "output", (1.5, 1.5), (32, 32))
    update = Update(config, [weight], torch.device("cpu"), ranks)
    scale = update.scaler.get_scale()
    norm = update([weight.sum() * (float("inf") if ranks.rank == 1 else 1.0)], 0.1, nesterov=True)
    assert not norm.isfinite() and torch.equal(weight, torch.ones(3))
    assert ranks.all_say(update.scaler.get_scale()) == [scale / 2] * ranks.world
    norm = update([weight.sum() * (ranks.rank + 1)], 0.1, nesterov=False)
    total = sum(range(1, ranks.world + 1))
    assert norm.item() == pytest.approx(total * 3**0.5)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 * (total + 1e-4)))


FLAGS = [
    "--labeled=2",
    "--model.channels=[4,6,8]",
    "--model.dropout=[0.1,0.0,0.2]",
    "--model.embedding=8",
    "--model.window=16",
    "--model.stride=8",
    "--model.pooled=4",
    "--input.size=[32,32]",
    "--device=cpu",
    "--baseline.iterations=4",
    "--global_distillation.iterations=4",
    "--local_distillation.iterations=4",
    "--anatomical_contrast.iterations=4",
    "--evaluation.every=2",
]


def new_trainer(ranks, method, data_root, output, *more, dtype=torch.float64):
    """A run before its first update; its batches come in the precision of its networks."""
    variant = "--anatomical_contrast.variant=" + ("action++" if method == "action++" else "action")
    flags = [*FLAGS, f"--data={data_root}", f"--method={method.rstrip('+')}", f"--output={output}", variant, *more]
    config = resolve(parse_config(flags))
    data = load_data(config)
    names = data.dataset.class_names
    torch.manual_seed(0)
    learner = make_learner(config, len(names), ranks).to(dtype).train()
    pools = (SlicePool(cases, labels=labels, seed=labels) for cases, labels in ((data.labeled, 1), (data.unlabeled, 0)))
    trainer = Trainer(config, learner, TrainingData(*pools), [], names, RunFolder(output), ranks=ranks)
    for stage in trainer.stages:
        stage.batch = lambda *a, single=stage.batch: {name: x.to(dtype) for name, x in single(*a).items()}
    return trainer


def all_updates(trainer):
    """Those of every stage, without validation or checkpoint."""
    for index, stage in enumerate(trainer.stages):
        trainer.stage_index = index
        for trainer.stage_step in range(stage.iterations):
            trainer.train_step(stage, trainer.stage_step)


def updates(ranks, method, data_root, output, *more):
    """A few updates of every stage in double precision; each process saves its networks, heads and banks."""
    trainer = new_trainer(ranks, method, data_root, output, *more)
    all_updates(trainer)
    torch.save(trainer.learner.state_dict(), f"{output}-{ranks.rank}.pt")


def test_a_first_process_that_keeps_the_store_and_has_ended_is_named(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = StartedRanks(1, 2, dist.TCPStore("127.0.0.1", store.port, is_master=False))
    del store
    raised = ranks.lost("Connection closed by peer")
    assert str(raised).startswith("rank 0, at which the processes meet, has ended: look at what it says")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "do not reach each other (Connection closed by peer)" in str(ranks.lost("Connection closed by peer"))
