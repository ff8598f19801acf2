"""Shared by the tests that need several packages at once."""

from __future__ import annotations

import torch

from plait_authoring.fixtures import lone_process

__all__ = ["lone_process"]

torch.set_num_threads(1)
