"""ACTION: semi-supervised segmentation by anatomical-aware contrastive distillation (IPMI 2023)."""
