"""Everything that is trained and saved: the segmentation network with its teacher, and the stages with their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from action.model.network import Network
from action.model.teacher import StudentTeacher, update_teachers


class Learner(nn.Module):
    """The network and the stages; its ``state_dict`` is the whole hand-over between stages.

    Args:
        network: for segmentation, which inference uses alone.
        stages: by name, each with its own heads and banks.
        teacher_momentum: final weight of the old teacher in the moving average.
    """

    def __init__(self, network: Network, stages: Mapping[str, nn.Module], teacher_momentum: float) -> None:
        super().__init__()
        self.network = StudentTeacher(network)
        self.stages = nn.ModuleDict(stages)
        self.teacher_momentum = teacher_momentum

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that the optimiser updates: the network's, then those of the stages."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def update_teachers(self, step: int) -> None:
        """One step of the moving averages, after update ``step`` (from 0, over all stages) of the optimiser.

        The momentum grows to its final value, min(m, (1 + t) / (10 + t)): with the full momentum from the start the
        average would still be mostly the random initialisation when a short run first asks it for targets.
        """
        momentum = min(self.teacher_momentum, (1 + step) / (10 + step))
        update_teachers((module for module in self.modules() if isinstance(module, StudentTeacher)), momentum)
