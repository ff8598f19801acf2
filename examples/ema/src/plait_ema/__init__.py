"""Exponential moving average of the weights: the functions are in `plait_ema.average`, plain PyTorch."""
