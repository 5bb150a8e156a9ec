"""Everything that is trained and handed from stage to stage: student, teacher, their heads, and the memory banks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from action.config import TrainConfig
from action.errors import InputError
from action.model.class_shares import ClassShares
from action.model.heads import GlobalHead, LocalHead, RepresentationHead, mlp
from action.model.teacher import make_teacher, update_teacher
from action.model.unet import UNet, UNetOutput
from action_kernels import MemoryBank


class SegmentationModel(nn.Module):
    """The network and its training-only heads. Inference uses ``network`` alone."""

    def __init__(self, config: TrainConfig, classes: int) -> None:
        super().__init__()
        model = config.model
        self.network = UNet(1, classes, model.channels, model.dropout)
        self.global_head = GlobalHead(self.network.channels[-1], model.embedding)
        self.predictor = mlp(model.embedding, model.embedding, model.embedding)
        self.local_head = LocalHead(classes, model.window, model.stride, model.pooled)
        self.representation = RepresentationHead(self.network.channels[::-1], model.embedding)

    def forward(self, image: Tensor) -> UNetOutput:
        return self.network(image)


class Learner(nn.Module):
    """Student, teacher and banks; its ``state_dict`` is the whole hand-over between stages.

    Attributes:
        student, teacher: :class:`SegmentationModel`; the teacher is the student's moving average and is never trained.
        slice_bank: past teacher embeddings of slices (stage 1).
        window_bank: past teacher embeddings of each window position (stage 2).
        pixel_bank: class-labelled teacher representations of pixels (stage 3).
        class_shares: shares of the classes among labels and predictions (stage 3).
    """

    def __init__(self, config: TrainConfig, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.teacher_momentum = config.optimizer.teacher_momentum
        _check_size(config.input.size, config.model.channels, config.model.window, config.model.stride)
        self.student = SegmentationModel(config, classes)
        self.teacher = make_teacher(self.student)
        positions = _positions(config.input.size, config.model.window, config.model.stride)
        dim = config.model.embedding
        self.slice_bank = MemoryBank(config.global_distillation.bank, dim)
        self.window_bank = MemoryBank(config.local_distillation.bank, self.student.local_head.dim, groups=positions)
        self.pixel_bank = MemoryBank(config.anatomical_contrast.pixel_bank, dim, labeled=True)
        self.class_shares = ClassShares(classes, config.optimizer.teacher_momentum)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        self.teacher.eval()  # the averaged batch statistics are the teacher's own
        return self

    def update_teacher(self, step: int) -> None:
        """One step of the moving average, after update ``step`` (from 0, over all stages) of the optimiser.

        The momentum grows to its final value, min(m, (1 + t) / (10 + t)): with the full momentum from the start the
        average would still be mostly the random initialisation when a short run first asks it for targets.
        """
        momentum = min(self.teacher_momentum, (1 + step) / (10 + step))
        update_teacher(self.teacher, self.student, momentum)


def _positions(size: Sequence[int], window: int, stride: int) -> int:
    return ((size[0] - window) // stride + 1) * ((size[1] - window) // stride + 1)


def _check_size(size: Sequence[int], channels: Sequence[int], window: int, stride: int) -> None:
    factor = 2 ** (len(channels) - 1)
    for extent in size:
        if extent % factor or extent < 2 * factor:
            raise InputError(
                f"input.size {tuple(size)}: each side must be a multiple of {factor} and at least {2 * factor}, "
                f"for {len(channels)} levels of model.channels"
            )
        if extent < window or (extent - window) % stride:
            raise InputError(
                f"model.window {window} with model.stride {stride} does not tile input.size {tuple(size)}: "
                "(size - window) must be a multiple of the stride"
            )
