"""From a configuration to loaded data, networks and a trainer: what train, evaluate and predict share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from action.checkpoint import checked_state
from action.config import RunConfig, TrainConfig, fill_in
from action.data import findings
from action.data.batches import SlicePool
from action.data.cases import Case, Sets
from action.data.dataset import AUTO, Dataset, open_dataset
from action.data.fingerprint import Fingerprint, Measures, fingerprint_of
from action.data.identity import describe
from action.data.in_memory import CasesInMemory
from action.data.look import directions_in_headers
from action.data.phantom import write_phantom
from action.data.prepared import PreparedCases
from action.data.scale import choose_scale
from action.data.split import Split, make_split
from action.data.volumes import LoadedCase, load_cases
from action.errors import InputError
from action.files import check_writable
from action.memory import check_memory
from action.model.build import described, make_network, network_class
from action.model.network import Network
from action.model.unet import channels_of
from action.own import is_own, short
from action.ranks import ALONE, Ranks
from action.run_folder import RunFolder, load_checkpoint
from action.stages import make_learner, stage_classes, uses_unlabeled
from action.stages.base import TrainingData
from action.trainer import Trainer
from action.workers import once

PHANTOM = Path("data/phantom")


def resolve(config: TrainConfig) -> RunConfig:
    """Fill in what was left open: the phantom as data, the run's folder, spacing and size; paths become absolute.

    Raises:
        InputError: a class that the settings name cannot be imported, or the data cannot be opened.
    """
    stage_classes(config.method)
    network_class(config.model.network)
    data = Path(config.data).expanduser() if config.data is not None else write_phantom(PHANTOM)
    split = config.split
    if split.file:
        split = dataclasses.replace(split, file=str(Path(split.file).expanduser().resolve()))
    output = choose_output(config)
    cache = config.cache and str(Path(config.cache).expanduser().resolve())
    config = dataclasses.replace(config, data=str(data.resolve()), split=split, cache=cache)
    if config.format == AUTO:
        config = dataclasses.replace(config, format=open_dataset(data, AUTO).format)
        print(f"{data}: taken for the format {config.format}")
    spacing, size = config.input.spacing, config.input.size
    if spacing is None or size is None:
        dataset, patients = open_split(config)
        training = {*patients.labeled, *patients.unlabeled}
        spacing, size = choose_scale([case for case in dataset.cases if case.patient in training], spacing, size)
    return fill_in(config, str(data.resolve()), str(output.resolve()), spacing, size)


def check_output(config: TrainConfig) -> None:
    """Refuse folders of the run and of prepared cases that cannot be written, before the data are read.

    Raises:
        InputError: names the flag.
    """
    check_writable(choose_output(config), "--output")
    if config.cache:
        check_writable(Path(config.cache).expanduser(), "--cache")


def choose_output(config: TrainConfig) -> Path:
    """The run's folder: as asked for, or named after the data and the main settings."""
    if config.output is not None:
        return Path(config.output).expanduser()
    data = PHANTOM if config.data is None else Path(config.data).expanduser()
    labeled = len(config.labeled_patients) or config.labeled
    return Path(f"runs/{data.name}-{short(config.method)}-{labeled}-seed{config.seed}")


@dataclass
class LoadedData:
    """A data set that is loaded, divided by patient, and the fingerprint of its training volumes."""

    dataset: Dataset
    split: Split
    labeled: list[LoadedCase]
    unlabeled: list[LoadedCase]
    validation: list[LoadedCase]
    test: list[LoadedCase]
    fingerprint: Fingerprint


def open_split(config: TrainConfig) -> tuple[Dataset, Split]:
    """The data set's files and the division of its patients; reads no image."""
    dataset = open_dataset(Path(config.data or PHANTOM), config.format)
    file = Path(config.split.file) if config.split.file else dataset.split_file
    split = make_split(
        dataset.cases,
        config.split.proportions,
        labeled=config.labeled_patients or config.labeled,
        order=config.split.labeled_order,
        seed=config.seed,
        file=file,
        shuffle_seed=config.split.shuffle_seed,
        prescribed=Sets() if file else dataset.find_sets(config.split.fold),
    )
    check_split(config, split)
    return dataset, split


def check_split(config: TrainConfig, split: Split) -> None:
    """Refuse a split that leaves the method nobody to learn from.

    Raises:
        InputError: every training patient is labelled.
    """
    if uses_unlabeled(config.method) and not split.unlabeled:
        raise InputError(
            f"labeled {len(split.labeled)}: every training patient is labelled, so {config.method} has none to learn "
            "from without labels; ask for fewer, or use --method supervised"
        )


@findings.printed()
def load_data(config: RunConfig, fingerprint: Fingerprint | None = None) -> LoadedData:
    """Read, check and divide everything that a run needs, before it writes anything; print what is odd about it.

    Args:
        config: settings of the run.
        fingerprint: the one that the run began with; without it, one is made from the training volumes.

    Raises:
        InputError: all problems of the files in one message.
    """
    dataset, split = open_split(config)
    # Labels of unlabelled patients are not even read: what is not read cannot leak.
    hidden = set(split.unlabeled)
    wanted = [dataclasses.replace(case, label=None) if case.patient in hidden else case for case in dataset.cases]
    if not uses_unlabeled(config.method):
        wanted = [case for case in wanted if case.patient not in hidden]
    training = {*split.labeled, *split.unlabeled}
    source = open_cache(config) or CasesInMemory()
    if fingerprint is None:
        measured = [case for case in wanted if case.patient in training]
        directions = once(lambda: directions_in_headers(measured))  # asked for by volumes that are read

        def measure(case: Case) -> list[Measures]:
            return source.measures(case, len(dataset.class_names), config.input, directions)

        fingerprint = fingerprint_of(measured, config.input.intensity, measure, progress=True)
    loaded = load_cases(
        wanted,
        len(dataset.class_names),
        config.input,
        fingerprint,
        training=training,
        progress=True,
        load=source.load,
    )

    assert fingerprint is not None  # or no image could be read, and ``load_cases`` has said so

    def of(patients: tuple[str, ...]) -> list[LoadedCase]:
        return [case for case in loaded if case.patient in set(patients)]

    labeled, unlabeled, validation, test = map(of, (split.labeled, split.unlabeled, split.validation, split.test))
    findings.report(labeled, unlabeled, validation, test, dataset.class_names)
    return LoadedData(dataset, split, labeled, unlabeled, validation, test, fingerprint)


def open_cache(config: RunConfig) -> PreparedCases | None:
    """The folder of prepared cases that the settings name, if they do.

    Raises:
        InputError: it cannot be made.
    """
    return PreparedCases(Path(config.cache)) if config.cache else None


def make_trainer(
    config: RunConfig,
    data: LoadedData,
    run: RunFolder,
    device: torch.device,
    ranks: Ranks = ALONE,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """Initialise the networks from the seed and assemble the trainer, which is of the class ``kind``.

    Raises:
        InputError: networks and banks larger than the device's memory.
    """
    names = data.dataset.class_names
    channels = len(data.fingerprint.channels)
    torch.manual_seed(config.seed)
    # A class of the user's shows its widths only when it runs; of the built-in U-Net they are known beforehand.
    network = make_network(config, channels, len(names)) if is_own(config.model.network) else None
    check_memory(config, len(names), device, channels=channels, network=network)
    learner = make_learner(config, len(names), ranks, channels=channels, network=network).to(device)
    training = TrainingData(
        SlicePool(data.labeled, labels=True, seed=config.seed, device=device),
        SlicePool(data.unlabeled, labels=False, seed=config.seed + 1, device=device),
    )
    description = describe([*data.labeled, *data.unlabeled, *data.validation, *data.test])
    return kind(config, learner, training, data.validation, names, run, description, ranks)


def load_network(config: RunConfig, checkpoint: Path, device: torch.device) -> tuple[Network, tuple[str, ...]]:
    """The student network of a checkpoint, ready for inference, and its class names."""
    state = checked_state(load_checkpoint(checkpoint, device), checkpoint)
    names = tuple(state["class_names"])
    prefix = "network.student."
    weights = {key.removeprefix(prefix): value for key, value in state["learner"].items() if key.startswith(prefix)}
    try:
        channels = state["channels"] if "channels" in state else channels_of(weights)
        network = make_network(config, channels, len(names))
        network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint} holds another network than {described(config.model)} of its run "
            f"({' '.join(str(error).split())[:200]}...): use the version of action that wrote it, or train again"
        ) from error
    return network.to(device).eval(), names


def check_network(network: Network, fingerprint: Fingerprint, folder: RunFolder) -> None:
    """Refuse a network for images with another number of channels than the run's fingerprint is of.

    Raises:
        InputError: the run's files do not belong together.
    """
    if (wanted := len(fingerprint.channels)) != network.in_channels:
        raise InputError(
            f"{folder.best} is of a network for {network.in_channels} channels, but {folder.fingerprint} is of "
            f"{wanted}: bring back the file that belongs to the run, or train again"
        )
