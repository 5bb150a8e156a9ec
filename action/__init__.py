"""ACTION: semi-supervised segmentation by anatomical-aware contrastive distillation (IPMI 2023)."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from action_kernels import __version__  # here, for it imports PyTorch, which the list of commands does without

    return __version__
