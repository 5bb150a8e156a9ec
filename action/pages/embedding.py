"""Where pixels of each class lie in what the network has learned, before the last stage and after it."""

from __future__ import annotations

import torch

from action.config import RunConfig
from action.data import findings
from action.data.dataset import Dataset
from action.data.fingerprint import load_fingerprint
from action.data.split import load_split
from action.data.volumes import load_case
from action.experiment import load_network
from action.features import decoder_features, principal_plane, quarter_slices, standardized, variance_between
from action.pages.page import number
from action.pages.scatter import Scatter, scatter
from action.run_folder import RunFolder
from action.stages import stage_classes

CASES = 6
"""Of the validation patients at most."""
PIXELS = 250
"""Of a class in a drawing, about."""


def embeddings(folder: RunFolder, config: RunConfig, dataset: Dataset) -> list[Scatter]:
    """Drawings of the student's decoder features on validation patients, at the end of the last stages but one and now.

    None for a method of one stage, or where a checkpoint or a validation patient's label is not there.

    Raises:
        InputError: a file that cannot be read.
    """
    stages = list(stage_classes(config.method))
    if len(stages) < 2:
        return []
    checkpoints = {
        f"before {_name(stages[-1])}": folder.stage_ends[stages[-2]],
        f"after {_name(stages[-1])}": folder.latest,
    }
    validation = set(load_split(folder.split).validation)
    cases = [case for case in dataset.cases if case.patient in validation and case.label is not None][:CASES]
    if not cases or not all(path.is_file() for path in checkpoints.values()):
        return []
    names, device = dataset.class_names, torch.device("cpu")
    fingerprint = load_fingerprint(folder.fingerprint)
    with findings.collected([]):  # the training has said what is odd
        loaded = [load_case(case, len(names), config.input, fingerprint) for case in cases]
    shown = quarter_slices(loaded, config.input.size, device)
    if shown is None:
        return []
    drawings = []
    for title, path in checkpoints.items():
        network, _ = load_network(config, path, device)
        rows, classes = decoder_features(network, shown, len(names), max(PIXELS // len(shown.label), 1))
        rows = standardized(rows)
        plane = principal_plane(rows)
        between = variance_between(rows, classes, len(names))
        caption = (
            f"The axes hold {number(100 * plane.explained[0], 0)} % and {number(100 * plane.explained[1], 0)} % of the "
            f"variance; of all of it {number(100 * between, 1)} % lies between the classes."
        )
        drawings.append(scatter(title, caption, plane.places.numpy(), classes.numpy(), names))
    return drawings


def _name(stage: str) -> str:
    return stage.replace("_", " ")
