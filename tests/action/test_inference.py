"""What is made of a network's probabilities: averages over flips and networks, one piece of a class, little memory."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from action.inference import Member, Segmenter, keep_largest
from action.model.network import NetworkOutput


class Skewed(nn.Module):
    """A network whose logits depend on where in the window a pixel lies, so that flips make a difference."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(seed)))

    def forward(self, image: torch.Tensor) -> NetworkOutput:
        return NetworkOutput(self.place + image * torch.tensor([-1.0, 0.5, 2.0])[:, None, None], [])


IMAGE = np.random.default_rng(0).random((5, 1, 16, 24)).astype(np.float16)


def result(networks, **options):
    members = [Member(network, (16, 24)) for network in networks]
    return torch.stack(list(Segmenter(members, 2, **options).slices(IMAGE)))


def by_hand(network, image):
    with torch.no_grad():
        return network(torch.from_numpy(image.copy()).float()).logits.softmax(1).numpy()


def test_mirroring_averages_over_both_axes_of_a_slice():
    network = Skewed(1)
    flips = [axes for count in range(3) for axes in itertools.combinations((2, 3), count)]
    expected = np.mean([np.flip(by_hand(network, np.flip(IMAGE, axes)), axes) for axes in flips], axis=0)
    assert np.allclose(result([network], mirror=True), expected, atol=1e-6)
    assert not np.allclose(result([network]), expected, atol=1e-2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_probabilities_of_several_networks_are_averaged(count):
    networks = [Skewed(seed) for seed in range(count)]
    expected = np.mean([by_hand(network, IMAGE) for network in networks], axis=0)
    assert np.allclose(result(networks), expected, atol=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_keeps_its_mode(mode):
    network = Skewed(0).train(mode)
    result([network], mirror=True)
    assert network.training is mode


def test_the_largest_piece_of_a_class_stays():
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1  # corners touch, across slices
    labels[0, 5:7, 6] = 1
    labels[2, 7, 0:4] = 2
    labels[0, 4, 0] = 2
    expected = labels.copy()
    expected[0, 5:7, 6] = 0
    before = labels.copy()
    assert np.array_equal(keep_largest(labels, [1]), expected)
    expected[0, 4, 0] = 0
    assert np.array_equal(keep_largest(labels, [1, 2, 3]), expected)
    assert np.array_equal(keep_largest(labels, []), before) and np.array_equal(labels, before)


def test_a_piece_of_another_class_within_the_box_of_one_stays():
    labels = np.zeros((1, 7, 7), np.uint8)
    labels[0, 0, :] = labels[0, 6, 0] = 1
    labels[0, 3, 3] = 2
    kept = keep_largest(labels, [1])
    assert kept[0, 3, 3] == 2 and kept[0, 6, 0] == 0 and kept[0, 0].all()


@pytest.mark.parametrize(("first", "second"), [((0, 0), (4, 4)), ((0, 4), (4, 0))])
def test_of_equal_pieces_the_first_stays(first, second):
    labels = np.zeros((1, 6, 6), np.uint8)
    labels[0][first] = labels[0][second] = 1
    kept = keep_largest(labels, [1])
    assert kept[0][first] == 1 and kept.sum() == 1


MEMORY = """
import sys
from pathlib import Path
import nibabel as nib
import numpy as np
import torch
from action.config import InputConfig
from action.data.cases import Case
from action.data.fingerprint import fingerprint_of
from action.data.nifti import write_label
from action.data.volumes import load_case
from action.inference import Member, Segmenter
from action.model.network import NetworkOutput

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6)[:, None, None])
    def forward(self, image):
        return NetworkOutput(self.weight * image, [])

def peak(depth):
    path = sys.argv[1] / f"{depth}.nii.gz"
    tile = np.random.default_rng(0).integers(0, 1000, (40, 40, 1)).astype(np.int16)
    nib.save(nib.Nifti1Image(np.tile(tile, (8, 8, depth)), np.diag([1.5, 1.5, 8, 1])), path)
    case = Case("a", "a", path, None)
    loaded = load_case(case, 6, InputConfig((1.5, 1.5)), prints)
    labels = Segmenter([Member(network, (320, 320))], 4).segment(loaded)
    write_label(f"{sys.argv[1]}/out{depth}.nii.gz", labels, loaded.volume)
    status = Path("/proc/self/status").read_text()  # getrusage would begin with the peak of the process before exec
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

network = Network()
sys.argv[1] = Path(sys.argv[1])
tile = np.random.default_rng(0).integers(0, 1000, (40, 40, 8)).astype(np.int16)
nib.save(nib.Nifti1Image(tile, np.diag([1.5, 1.5, 8, 1])), sys.argv[1] / "first.nii.gz")
prints = fingerprint_of([Case("f", "f", sys.argv[1] / "first.nii.gz", None)], "minmax")
peak(8)
before = peak(16)
print((peak(240) - before) / (224 * 320 * 320))
"""
PER_VOXEL = 8.0
"""Bytes at the peak, when the volume is read: 2 as it is stored, 4 in float32, and what is made of a slice."""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_grows_by_a_few_bytes_a_voxel_whatever_the_number_of_classes(tmp_path):
    script = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path)]
    run = subprocess.run(script, capture_output=True, text=True, check=True)
    assert 3 < float(run.stdout) < PER_VOXEL
