"""Device, precision and ranks through Accelerate, and the seeds of the global generators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.directory import RunDirectory
from plait.errors import BadInput
from plait.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(recipe: Recipe, directory: RunDirectory) -> Accelerator:
    """Accelerate's view of device, precision and ranks.

    Raises:
        BadInput: a device that is not here, or a logger that is not installed.
    """
    import torch
    from accelerate import Accelerator

    device = recipe.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device here; use --device cpu.")
    if device.startswith("cuda:"):
        if int(device[5:]) >= torch.cuda.device_count():
            raise BadInput(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices.")
        torch.cuda.set_device(device)
    if device == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--device mps: torch sees no MPS device here; use --device cpu.")
    torch.backends.cudnn.deterministic = True
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        made = Accelerator(
            cpu=device == "cpu",
            mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision],
            log_with=list(recipe.loggers) or None,
            project_dir=str(directory.path),
        )
    except (ValueError, ImportError) as error:
        raise BadInput(f"device {device}, precision {recipe.precision}: {error}") from error
    if recipe.loggers:
        if not made.trackers and set(map(str, made.log_with)) < set(recipe.loggers):
            raise BadInput(f"loggers {list(recipe.loggers)}: not installed; pip install {' '.join(recipe.loggers)}.")
        made.init_trackers("plait", config={"seed": recipe.seed, "plugins": " ".join(recipe.plugins)})
    return made


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python for building data and model."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_noise(seed: int, rank: int, step: int = 0) -> None:
    """Seed what is drawn during training (dropout), differently on every rank."""
    import torch

    from plait.data import seed_of

    torch.manual_seed(seed_of(seed, "noise", rank, step))
