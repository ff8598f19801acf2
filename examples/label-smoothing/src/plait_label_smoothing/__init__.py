"""Label smoothing as a loss term: the function is in `plait_label_smoothing.smoothing`, plain PyTorch."""
