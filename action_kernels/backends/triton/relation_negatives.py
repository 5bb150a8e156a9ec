"""Draws by the relation of classes: integer arithmetic over N x k, in a few PyTorch kernels."""

from ..reference.relation_negatives import relation_negatives

__all__ = ["relation_negatives"]
