"""Every setting of a run: as asked for (``TrainConfig``), and resolved (``RunConfig``), with nothing left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import inf, isfinite
from typing import Any, Literal

from action.choices import METHODS, CropName, FormatName, IntensityName, LoggerName, MethodName, MixName
from action.errors import InputError
from action.own import is_own


def within(low: float, high: float, default: Any = MISSING) -> Any:
    """A field whose number, or every number of whose tuple, lies in low <= number <= high. None is left open."""
    return field(default=default, metadata={"range": (low, high)})


UNET = "unet"
"""The name of the built-in network."""


@dataclass(frozen=True)
class SplitConfig:
    """Which patients train, validate and test.

    Args:
        proportions: fraction (or number) of patients for training, validation and test.
        file: JSON file with lists of patients under "train", "validation" and "test"; replaces the proportions.
        shuffle_seed: order in which patients are dealt; the run's seed never moves one into or out of the test set.
        labeled_order: "seed" draws the labelled patients by the run's seed; "list" takes the first of the file's list
            "train". A list "labeled" in the file comes before both: its first patients are the labelled ones.
        fold: which division of a data set that has several, as nnU-Net's splits_final.json has.
    """

    proportions: tuple[float, float, float] = within(0, inf, (0.7, 0.1, 0.2))
    file: str | None = None
    shuffle_seed: int = within(0, 2**63 - 1, 0)
    labeled_order: Literal["seed", "list"] = "seed"
    fold: int = within(0, 10**4, 0)


@dataclass(frozen=True)
class InputConfig:
    """What the network sees.

    Args:
        spacing: height and width of a pixel, mm: every slice is resampled to it, so that what is of one size has one
            size for the network, and predictions are resampled back; null: the median of the training volumes. Data
            without a voxel size say 1 mm: the unit is the voxel then.
        size: height and width of what the network sees at once, pixels. Training takes random patches, padded where a
            slice is smaller; prediction slides a window over what is larger. null: the median slice of the training
            volumes, in steps of 32 up to 256.
        crop: "body" shows the network only the part of a CT's slices that holds the patient, so that no pixel is spent
            on air. Outside it is predicted background.
        intensity: "minmax" from the 0.5 % to the 99.5 % quantile of each volume (MRI), "hu" clips CT to [-200, 250] HU;
            "auto": one of them for the whole data set, "hu" if half of the training volumes or more have air in HU.
    """

    spacing: tuple[float, float] | None = within(1e-3, 1e3, None)
    size: tuple[int, int] | None = within(8, 4096, None)
    crop: CropName = "none"
    intensity: IntensityName = "auto"


@dataclass(frozen=True)
class AugmentationConfig:
    """Random transforms of a slice. The teacher sees the weak view, the student the strong one.

    Args:
        rotation: largest rotation, degrees (weak view).
        zoom: largest relative change of size (weak view).
        flip: probability of a flip along a random axis (weak view).
        brightness: factor range of brightness and of contrast (strong view).
        blur: range of the Gaussian's sigma, pixels (strong view).
        intensity_probability: probability of each of brightness, contrast and blur.
        deformation: largest displacement of the control points, pixels (strong view).
        deformation_probability: probability of the deformation.
    """

    rotation: float = within(0, 180, 20.0)
    zoom: float = within(0, 0.9, 0.1)
    flip: float = within(0, 1, 0.5)
    brightness: tuple[float, float] = within(0, 10, (0.75, 1.25))
    blur: tuple[float, float] = within(0, 20, (0.15, 1.15))
    intensity_probability: float = within(0, 1, 0.5)
    deformation: float = within(0, 1000, 4.0)
    deformation_probability: float = within(0, 1, 0.5)


@dataclass(frozen=True)
class ModelConfig:
    """Networks.

    Args:
        network: "unet", or a class of your own or of another library, package.module:Class. It is made with in_channels
            and out_channels, of MONAI's classes also with spatial_dims 2, and returns logits alone.
        arguments: more that such a class is made with, by name.
        feature_layers: names of its layers whose outputs the stages of action and unimatch compare: the last of the
            encoder, then one of each level of the decoder, coarse to fine; the last is as large as the image.
        channels: width of each level of the built-in U-Net, fine to coarse (published: 16, 32, 64, 128, 256).
        dropout: rate in each level of the encoder (published: 0.05, 0.1, 0.2, 0.3, 0.5); empty: no dropout, which
            shifts what batch norm sees between training and inference, more than a short run recovers from.
        embedding: features of the slice embedding and of the pixel representation (published: 512).
        window: side of the local windows of stage 2, pixels (published: 64 at 256).
        stride: step of the local windows (published: 32 at 256).
        pooled: side of a pooled window.
    """

    network: str = UNET
    arguments: dict[str, Any] = field(default_factory=dict)
    feature_layers: tuple[str, ...] = ()
    channels: tuple[int, ...] = within(1, 8192, (8, 16, 32, 64, 128))
    dropout: tuple[float, ...] = within(0, 0.99, ())
    embedding: int = within(1, 65536, 128)
    window: int = within(1, 4096, 32)
    stride: int = within(1, 4096, 16)
    pooled: int = within(1, 4096, 8)


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with a polynomial schedule in every stage, lr * (1 - t/T) ** power; the teacher's averaging.

    Args:
        lr: learning rate at the start of each stage (published: 0.01, over 30,000 updates).
        momentum: SGD momentum.
        weight_decay: L2 penalty.
        power: exponent of the schedule.
        teacher_momentum: weight of the old teacher in the exponential moving average.
    """

    lr: float = within(0, 10, 0.03)
    momentum: float = within(0, 0.9999, 0.9)
    weight_decay: float = within(0, 1, 1e-4)
    power: float = within(0, 10, 0.9)
    teacher_momentum: float = within(0, 1, 0.99)


@dataclass(frozen=True)
class DistillationConfig:
    """Stages 1 and 2: soft similarity labels over a memory bank.

    Args:
        iterations: network updates.
        labeled: labelled slices in a batch.
        unlabeled: unlabelled slices in a batch.
        bank: entries of the memory bank (of each window position in stage 2).
        student_temp: temperature of the student's similarities.
        teacher_temp: temperature of the teacher's similarities.
        weight: weight of this stage's distillation loss beside the others (published: 1, over 30,000 updates).
        nesterov: whether the momentum is Nesterov's, as it is in stage 3 and in the baselines (published: false).
    """

    iterations: int = within(0, 10**9, 30)
    labeled: int = within(1, 10**4, 3)
    unlabeled: int = within(1, 10**4, 3)
    bank: int = within(1, 10**7, 36)
    student_temp: float = within(1e-4, 1e4, 0.1)
    teacher_temp: float = within(1e-4, 1e4, 0.01)
    weight: float = within(0, 1e6, 0.1)
    nesterov: bool = True


@dataclass(frozen=True)
class AnatomicalContrastConfig:
    """Stage 3: pseudo-labels and the contrast of hard pixels with sparse negatives; also the baseline pseudo-labels.

    Args:
        iterations: network updates.
        labeled: labelled slices in a batch.
        unlabeled: unlabelled slices in a batch.
        mix: how slices of the strong view are mixed.
        mix_with: what is mixed into an unlabelled slice: its neighbour in the batch with its pseudo-label (published),
            or a labelled slice with its label, which is right (as in Bai et al., CVPR 2023).
        strong_threshold: confidence above which a pseudo-label counts for an image's weight; also the student's
            probability of a pixel's class below which the pixel is hard.
        pseudo_label_threshold: confidence below which a pixel has no pseudo-label; 0: every pixel has one (published).
        pseudo_label_dice: whether the pseudo-label loss is half Dice, as the supervised one is, and not cross-entropy
            alone (published): in a short run that teaches the student background, which most pixels are. But Dice
            claims doubtful pixels for the rare classes, and where the teacher takes that up they grow (CT).
        pseudo_label_alignment: whether the teacher's probabilities on unlabelled slices are scaled until each class has
            the share of pixels there that it has in the labelled slices (published: false). Without it, a teacher that
            has seen one patient may teach itself an organ of several times its size, or next to none of it.
        weak_threshold: confidence above which an unlabelled pixel takes part in the contrast.
        unsupervised_weight: weight of the pseudo-label loss.
        ramp_up: share of the updates over which that weight grows from 0; 0: full from the start (published).
        contrast_weight: weight of the anatomical contrast.
        queries: hard pixels a class.
        keys: teacher pixels a class; their mean is the positive key, and they enter the pixel bank.
        negatives_per_query: N_k.
        temp: temperature of the contrast and of the class relation graph.
        variant: "action++" pulls the hard pixels of a class to an anchor of its own as well, one of the vectors that
            lie furthest apart, and lets the temperature of the contrast go from high to low and back (You et al.,
            MICCAI 2023).
        temp_range: lowest and highest temperature of the contrast in the variant action++, in place of "temp".
        anchor_weight: weight of the pull to the anchors in the variant action++.
        negatives: "bank" takes them from a class-labelled pixel bank that spans the data set, "batch" from the batch.
        selection: "relation" draws a class by the relation graph, then a pixel of it; "hardest" takes the most similar.
        pixel_bank: rows of the pixel bank.
    """

    iterations: int = within(0, 10**9, 2120)
    labeled: int = within(1, 10**4, 3)
    unlabeled: int = within(1, 10**4, 3)
    mix: MixName = "cutmix"
    mix_with: Literal["unlabeled", "labeled"] = "unlabeled"
    strong_threshold: float = within(0, 1, 0.97)
    pseudo_label_threshold: float = within(0, 1, 0.7)
    pseudo_label_dice: bool = True
    pseudo_label_alignment: bool = True
    weak_threshold: float = within(0, 1, 0.7)
    unsupervised_weight: float = within(0, 1e6, 1.0)
    ramp_up: float = within(0, 1, 0.3)
    contrast_weight: float = within(0, 1e6, 0.01)
    queries: int = within(1, 10**6, 64)
    keys: int = within(1, 10**6, 64)
    negatives_per_query: int = within(1, 10**6, 128)
    temp: float = within(1e-4, 1e4, 0.5)
    variant: Literal["action", "action++"] = "action"
    temp_range: tuple[float, float] = within(1e-4, 1e4, (0.1, 1.0))
    anchor_weight: float = within(0, 1e6, 0.2)
    negatives: Literal["bank", "batch"] = "bank"
    selection: Literal["relation", "hardest"] = "relation"
    pixel_bank: int = within(1, 10**8, 8192)


@dataclass(frozen=True)
class BaselineConfig:
    """The baselines.

    Args:
        iterations: network updates; null: as many as ACTION's three stages together.
        labeled: labelled slices in a batch.
        unlabeled: unlabelled slices in a batch.
        consistency: final weight of the mean teacher's consistency.
        ramp_up: share of the updates over which the mean teacher's weight grows.
    """

    iterations: int | None = within(1, 10**9, None)
    labeled: int = within(1, 10**4, 3)
    unlabeled: int = within(1, 10**4, 3)
    consistency: float = within(0, 1e6, 1.0)
    ramp_up: float = within(0, 1, 0.4)


@dataclass(frozen=True)
class CopyPasteConfig:
    """The baseline copy-paste.

    Args:
        side: height and width of the box that is pasted, as a share of the slice's (published: 2/3).
        unlabeled_weight: weight of pixels with a pseudo-label beside those with a label (published: 0.5).
        pretraining: share of the updates that paste labelled slices into each other, so that the teacher knows
            something when it is first asked (published: 0.25).
    """

    side: float = within(0, 1, 2 / 3)
    unlabeled_weight: float = within(0, 1e6, 0.5)
    pretraining: float = within(0, 1, 0.25)


@dataclass(frozen=True)
class UniMatchConfig:
    """The baseline unimatch.

    Args:
        threshold: confidence below which a pixel has no pseudo-label (published: 0.95).
        strong_weight: weight of the two strong views together (published: 0.5).
        feature_weight: weight of the perturbed features (published: 0.5).
        drop: share of the channels of every encoder map that the perturbation drops (published: 0.5).
    """

    threshold: float = within(0, 1, 0.95)
    strong_weight: float = within(0, 1e6, 0.5)
    feature_weight: float = within(0, 1e6, 0.5)
    drop: float = within(0, 0.99, 0.5)


@dataclass(frozen=True)
class EvaluationConfig:
    """How often a run validates and saves.

    Args:
        every: updates between validations (also at the end of each stage).
        smoothing: weight of earlier validations in the moving average of the Dice that chooses the best checkpoint, as
            in nnU-Net: one lucky validation of a few patients does not. 0: every validation by itself.
        checkpoint_every: updates between checkpoints (also at the end of each stage).
        batch: slices in one forward pass.
    """

    every: int = within(1, 10**9, 100)
    smoothing: float = within(0, 0.9999, 0.9)
    checkpoint_every: int = within(1, 10**9, 100)
    batch: int = within(1, 10**5, 8)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        data: folder of the data set; null: a phantom set is written to data/phantom once and used.
        format: layout of the data set; "auto" recognises it; or a class of your own, package.module:Class.
        method: ACTION, or a baseline in the same trainer; or a stage of your own, package.module:Class.
        labeled: number of labelled patients; the other training patients are used without their labels.
        labeled_patients: names of the labelled patients, in place of their number.
        seed: seed of initialisation, batches, augmentation and the choice of labelled patients.
        output: folder of the run; null: runs/<data>-<method>-<labeled>-seed<seed>.
        cache: folder in which volumes are kept as the network sees them, two bytes a pixel: slices are read from there
            as they are needed, and the next run with the same scans and settings starts at once. Several runs may share
            it. null: all volumes are read at the start of every run, and held in memory.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        precision: "fp32"; "bf16" or "fp16" compute the networks in half precision where PyTorch's autocast does (fp16
            with loss scaling), which GPUs do faster.
        accumulate: batches whose gradients add up to one update, where the memory holds small batches only: an update
            sees this many times the slices that a stage has in its batch. Batch norm, losses, pseudo-labels and
            negatives are those of each batch by itself; the banks take all of them after the update.
        compile: whether torch.compile makes kernels for the network, which takes a minute or more at the start.
        loggers: where losses and Dice are shown while the run trains: "tensorboard", "wandb" (Weights & Biases),
            "mlflow"; any number of them, none for metrics.csv alone.
        timeout: seconds that a process of several waits for another one before all of them end; more than any reads
            the data longer than the others do.
    """

    data: str | None = None
    format: FormatName = "auto"
    method: MethodName = "action"
    labeled: int = within(1, 10**6, 2)
    labeled_patients: tuple[str, ...] = ()
    seed: int = within(0, 2**63 - 2, 0)
    output: str | None = None
    cache: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = within(1, 10**4, 1)
    compile: bool = False
    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    timeout: float = within(1, 10**6, 600.0)
    split: SplitConfig = field(default_factory=SplitConfig)
    input: InputConfig = field(default_factory=InputConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    global_distillation: DistillationConfig = field(default_factory=DistillationConfig)
    local_distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(iterations=100))
    anatomical_contrast: AnatomicalContrastConfig = field(default_factory=AnatomicalContrastConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    copy_paste: CopyPasteConfig = field(default_factory=CopyPasteConfig)
    unimatch: UniMatchConfig = field(default_factory=UniMatchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def total_iterations(self) -> int:
        """Network updates of ACTION's stages."""
        return sum(getattr(self, stage).iterations for stage in METHODS["action"])

    def __post_init__(self) -> None:
        # The second list compares numbers with one another, so each must be sound by itself.
        problems = list(_out_of_range(self)) or [
            *_unordered("augmentation.brightness", self.augmentation.brightness),
            *_unordered("augmentation.blur", self.augmentation.blur),
            *_unordered("anatomical_contrast.temp_range", self.anatomical_contrast.temp_range),
            *_misfits_of_the_model(self.model, self.input.size),
            *_nothing_to_learn(self),
        ]
        if problems:
            raise InputError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class RunSplitConfig(SplitConfig):
    """As ``SplitConfig``; ``file`` is an absolute path, or "" where the proportions hold."""

    file: str


@dataclass(frozen=True, kw_only=True)
class RunInputConfig(InputConfig):
    """As ``InputConfig``, with a spacing and a size."""

    spacing: tuple[float, float] = within(1e-3, 1e3)
    size: tuple[int, int] = within(8, 4096)


@dataclass(frozen=True, kw_only=True)
class RunBaselineConfig(BaselineConfig):
    """As ``BaselineConfig``, with a number of updates."""

    iterations: int = within(1, 10**9)


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig):
    """Settings of a run with nothing left open, saved as ``config.yaml`` in its folder; paths are absolute.

    ``cache`` is "" where there is none, as in runs of before it was a setting.
    """

    data: str
    output: str
    cache: str = ""
    split: RunSplitConfig
    input: RunInputConfig
    baseline: RunBaselineConfig

    @property
    def updates(self) -> int | None:
        """Network updates of the whole run; ``None``: a stage of the user's decides."""
        if is_own(self.method):
            return None
        return self.total_iterations if self.method == "action" else self.baseline.iterations


def fill_in(
    config: TrainConfig, data: str, output: str, spacing: tuple[float, float], size: tuple[int, int]
) -> RunConfig:
    """The resolved settings, with these in the place of what ``config`` may leave open."""
    baseline = config.baseline.iterations or config.total_iterations
    return RunConfig(
        **vars(config)
        | {
            "data": data,
            "output": output,
            "cache": config.cache or "",
            "split": RunSplitConfig(**vars(config.split) | {"file": config.split.file or ""}),
            "input": RunInputConfig(**vars(config.input) | {"spacing": spacing, "size": size}),
            "baseline": RunBaselineConfig(**vars(config.baseline) | {"iterations": baseline}),
            "labeled": len(config.labeled_patients) or config.labeled,
        }
    )


def _out_of_range(settings: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for each number outside its field's range, in these settings and in those that they hold."""
    for declared in fields(settings):
        name, value = f"{prefix}{declared.name}", getattr(settings, declared.name)
        if is_dataclass(value):
            yield from _out_of_range(value, f"{name}.")
        if value is None and declared.default is not None:  # None is a value of those settings whose default it is
            yield f"{name} is null: give it a value, or leave it out for its default"
        if "range" not in declared.metadata or value is None:
            continue
        low, high = declared.metadata["range"]
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isfinite(number) and low <= number <= high for number in numbers):
            yield f"{name} is {value}: it must be {reach(low, high)}"


def reach(low: float, high: float) -> str:
    """A range in words."""
    return f"at least {low}" if high == inf else f"between {low} and {high}"


def _unordered(name: str, value: tuple[float, float]) -> list[str]:
    return [] if value[0] <= value[1] else [f"{name} is {value}: the smaller number comes first"]


def _misfits_of_the_model(model: ModelConfig, size: tuple[int, int] | None) -> Iterator[str]:
    """A sentence for each pair of the network's settings that do not go together; ``size`` may still be open."""
    own = is_own(model.network)
    if not own and model.network != UNET:
        yield f"model.network is '{model.network}': it must be {UNET}, or a class, package.module:Class"
    if not own and (model.arguments or model.feature_layers):
        yield f"model.arguments and model.feature_layers are not for model.network {model.network}: leave them out"
    if not _is_plain(model.arguments):
        yield f"model.arguments is {model.arguments}: it may hold numbers, texts, true, false, null, and lists of them"
    levels = len(model.channels)
    if levels < 2:
        yield f"model.channels is {model.channels}: give the widths of two levels or more"
        return
    if model.dropout and len(model.dropout) != levels:
        yield (
            f"model.dropout is {model.dropout}: give a rate for each of the {levels} levels of model.channels, or none"
        )
    if model.window % model.pooled or model.stride % (model.window // model.pooled):
        yield (
            f"model.pooled is {model.pooled}: model.window {model.window} must be a multiple of it, and model.stride "
            f"{model.stride} a multiple of window / pooled"
        )
    factor = 1 if own else 2 ** (levels - 1)
    for extent in size or ():
        if extent % factor or extent < 2 * factor:
            yield (
                f"input.size is {size}: each side must be a multiple of {factor} and at least {2 * factor}, for "
                f"{levels} levels of model.channels"
            )
        elif extent < model.window or (extent - model.window) % model.stride:
            yield (
                f"model.window {model.window} with model.stride {model.stride} does not tile input.size {size}: "
                "(size - window) must be a multiple of the stride"
            )
        else:
            continue
        return


def _is_plain(value: Any) -> bool:
    """Whether a YAML file gives the value back as it is."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, (int, float, str, type(None)))


def _nothing_to_learn(config: TrainConfig) -> Iterator[str]:
    if config.method != "action":
        if not (config.baseline.iterations or config.total_iterations):
            yield "baseline.iterations is open and the three stages have 0 iterations together: give it updates"
    elif not config.local_distillation.iterations + config.anatomical_contrast.iterations:
        yield (
            "local_distillation.iterations and anatomical_contrast.iterations are both 0: nothing would learn to "
            "segment; give one of them updates"
        )
