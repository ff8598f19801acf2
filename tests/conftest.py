"""Shared by the tests that need several packages at once."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
