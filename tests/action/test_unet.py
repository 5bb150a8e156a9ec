import pytest
import torch

from action.errors import InputError
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


def test_dropout_is_in_the_encoder_only_and_of_the_given_rates():
    rates = (0.1, 0.2, 0.3)
    network = UNet(1, 3, (4, 8, 12), rates)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)] == list(rates)
    assert not any(isinstance(m, torch.nn.Dropout) for m in UNet(1, 3, (4, 8, 12)).modules())


@pytest.mark.parametrize("channels, dropout", [((4, 8, 12), (0.1, 0.2)), ((4,), ())])
def test_levels_that_do_not_fit_are_refused(channels, dropout):
    with pytest.raises(InputError, match="model.dropout"):
        UNet(1, 3, channels, dropout)
