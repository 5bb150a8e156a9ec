"""Everything that is trained and handed from stage to stage: student, teacher, their heads, and the memory banks."""

from __future__ import annotations

from torch import Tensor, nn

from action.config import TrainConfig
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
        self.student = SegmentationModel(config, classes)
        self.teacher = make_teacher(self.student)
        positions = window_positions(config)
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


def window_positions(config: TrainConfig) -> int:
    """Places of the local windows in a slice."""
    rows, columns = ((extent - config.model.window) // config.model.stride + 1 for extent in config.input.size)
    return rows * columns
