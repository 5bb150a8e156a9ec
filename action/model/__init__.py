"""Networks: the U-Net, the training-only heads, and the averaged teacher."""
