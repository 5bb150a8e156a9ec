import pytest
import torch

from action.model.unet import UNet


def test_published_width_has_the_published_size():
    parameters = sum(p.numel() for p in UNet(1, 4, (16, 32, 64, 128, 256)).parameters())
    assert parameters == pytest.approx(1.81e6, rel=0.005)


def test_decoder_maps_run_from_coarse_to_fine():
    network = UNet(1, 3, (4, 8, 12, 16, 20))
    output = network(torch.randn(2, 1, 32, 48))
    assert output.logits.shape == (2, 3, 32, 48)
    shapes = [tuple(f.shape[1:]) for f in output.features]
    assert shapes == [(20, 2, 3), (16, 4, 6), (12, 8, 12), (8, 16, 24), (4, 32, 48)]


def test_too_many_levels_are_refused():
    with pytest.raises(ValueError, match="channels"):
        UNet(1, 3, (4,) * 6)
