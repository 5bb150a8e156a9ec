"""The parts that ACTION++ adds."""

import pytest
import torch

from action.cli import parse_config
from action.config import TrainConfig, fill_in
from action.errors import InputError
from action.stages import make_stages
from action.stages.adaptive_contrast import cosine_temperature, nearest_anchors, spread_anchors


def test_the_temperature_goes_from_high_to_low_and_back():
    assert [cosine_temperature(step, 8, 0.1, 1.0) for step in (0, 2, 4, 6, 8)] == pytest.approx([1, 0.55, 0.1, 0.55, 1])


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 8), (4, 3), (4, 128), (14, 16)])
def test_anchors_are_unit_vectors_that_lie_equally_far_apart(classes, dim):
    anchors = spread_anchors(classes, dim).double()
    assert anchors.shape == (classes, dim)
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(anchors @ anchors.T, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(anchors.sum(0), torch.zeros(dim, dtype=torch.float64), rtol=0, atol=1e-5)


def test_too_few_features_are_refused_by_name():
    asked = parse_config(["--anatomical_contrast.variant=action++", "--model.embedding=2"])
    with pytest.raises(InputError, match="model.embedding is 2: .* 4 classes .* 3 features or more"):
        make_stages(fill_in(asked, "data", "output", (1.0, 1.0), (128, 128)), 4)
    make_stages(fill_in(asked, "data", "output", (1.0, 1.0), (128, 128)), 3)


def test_temperatures_come_in_order():
    assert TrainConfig().anatomical_contrast.variant == "action"
    with pytest.raises(InputError, match="anatomical_contrast.temp_range is .*: the smaller number comes first"):
        parse_config(["--anatomical_contrast.temp_range=[1.0,0.1]"])


def test_classes_take_the_anchors_that_suit_all_of_them_best():
    anchors = spread_anchors(3, 4)
    assert nearest_anchors(anchors[[2, 0, 1]], anchors).tolist() == [2, 0, 1]
    # The first two both like anchor 0 most; the second has the worse second choice.
    means = torch.stack([0.6 * anchors[0] + 0.4 * anchors[1], anchors[0], torch.zeros(4)])
    assert nearest_anchors(means, anchors).tolist() == [1, 0, 2]
