"""Shares of the classes among the pixels, to which predictions on unlabelled slices are aligned."""

from __future__ import annotations

import torch
from monai.networks.utils import one_hot
from torch import Tensor, nn

TINY = 1e-12  # of shares and probabilities: a class that is neither labelled nor predicted stays defined


class ClassShares(nn.Module):
    """Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), by pixels.

    Attributes:
        labeled, unlabeled: running means of each class's share of the pixels [C], of the labels and of the predictions.

    Args:
        classes: C.
        momentum: weight of the old mean; it grows from 0, so that the first batches count like later ones.
    """

    batches: Tensor
    labeled: Tensor
    unlabeled: Tensor

    def __init__(self, classes: int, momentum: float) -> None:
        super().__init__()
        self._momentum = momentum
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("labeled", torch.zeros(classes))
        self.register_buffer("unlabeled", torch.zeros(classes))

    def align(self, probability: Tensor, label: Tensor) -> Tensor:
        """Update the means with a batch; return p'(c) = p(c) labeled(c) / unlabeled(c), normalised over the classes.

        Args:
            probability: of the classes on unlabelled slices [B, C, H, W], without gradient.
            label: of labelled slices [B, 1, H, W].
        """
        # In tensors: the host need not wait until the device has counted.
        weight = 1.0 - (self.batches / (self.batches + 1)).clamp_max(self._momentum)
        self.labeled.lerp_(one_hot(label, len(self.labeled), self.labeled.dtype).mean(dim=(0, 2, 3)), weight)
        self.unlabeled.lerp_(probability.mean(dim=(0, 2, 3)), weight)
        self.batches += 1
        aligned = probability * (self.labeled / self.unlabeled.clamp_min(TINY))[:, None, None]
        return aligned / aligned.sum(dim=1, keepdim=True).clamp_min(TINY)
