"""Fixtures shared by the core's tests."""

import torch

from plait_authoring.fixtures import call, install, lone_process

__all__ = ["call", "install", "lone_process"]

torch.set_num_threads(1)
