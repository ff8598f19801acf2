"""Fixtures shared by the core's tests."""

import torch

from plait_authoring.fixtures import install

__all__ = ["install"]

torch.set_num_threads(1)
