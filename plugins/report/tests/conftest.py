"""Fixtures of the report's tests."""

from __future__ import annotations

import torch

from plait_authoring.fixtures import call  # noqa: F401

torch.set_num_threads(1)
