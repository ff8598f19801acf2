"""Device, precision and ranks through Accelerate, and the seeds of the global generators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.directory import RunDirectory
from plait.errors import BadInput, PlaitError, RunFailed
from plait.recipe import Recipe
from plait.scale.processes import Place, here
from plait.scale.ranks import broken_exchange

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(recipe: Recipe, directory: RunDirectory) -> Accelerator:
    """Accelerate's view of device, precision and ranks; with several processes it brings them together.

    Raises:
        BadInput: a device that is not here, a logger that is not installed, or a port that is taken.
        RunFailed: the other processes did not come.
    """
    import torch
    from accelerate import Accelerator

    device, place = recipe.device, here()
    if device.startswith("cuda:") and not place.alone:
        raise BadInput(f"--device {device}: {place.world} processes cannot share one device; use --device cuda.")
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
    cpu = device == "cpu" or (not place.alone and device == "auto" and not torch.cuda.is_available())
    try:
        if not place.alone:
            _meet(place, "gloo" if cpu else "nccl", recipe.distributed.timeout)
        made = Accelerator(
            cpu=cpu,
            mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision],
            log_with=list(recipe.loggers) or None,
            project_dir=str(directory.path),
            kwargs_handlers=[] if place.alone else _handlers(recipe),
        )
    except RuntimeError as error:
        if not broken_exchange(error):
            raise
        raise _not_together(error, place, recipe.distributed.timeout) from error
    except (ValueError, ImportError) as error:
        raise BadInput(f"device {device}, precision {recipe.precision}: {error}") from error
    if recipe.loggers:
        if not made.trackers and set(map(str, made.log_with)) < set(recipe.loggers):
            raise BadInput(f"loggers {list(recipe.loggers)}: not installed; pip install {' '.join(recipe.loggers)}.")
        made.init_trackers("plait", config={"seed": recipe.seed, "plugins": " ".join(recipe.plugins)})
    return made


def _meet(place: Place, backend: str, timeout: float) -> None:
    """Bring the processes together through the store of an elastic agent, under keys of this attempt.

    The agent keeps one store over its restarts. Under the same keys a process would read where the lost one listened.
    """
    import os
    from datetime import timedelta

    from torch.distributed import TCPStore, init_process_group, is_initialized  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or is_initialized():
        return
    limit = timedelta(seconds=timeout)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, place.world, is_master=False, timeout=limit)
    attempt = PrefixStore(f"plait/attempt-{place.restart}-of-{place.world}", store)
    init_process_group(backend, store=attempt, rank=place.rank, world_size=place.world, timeout=limit)


def _handlers(recipe: Recipe) -> list[Any]:
    from datetime import timedelta

    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    table = recipe.distributed
    return [
        InitProcessGroupKwargs(timeout=timedelta(seconds=table.timeout)),
        DistributedDataParallelKwargs(find_unused_parameters=table.unused_parameters),
    ]


def _not_together(error: Exception, place: Place, timeout: float) -> PlaitError:
    """Why the processes could not be brought together."""
    import os

    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    said = next(iter(str(error).splitlines()), "")
    if "EADDRINUSE" in str(error) or "address already in use" in str(error):
        return BadInput(f"the port of {where} is taken on this machine: choose another MASTER_PORT. ({said})")
    return RunFailed(
        f"rank {place.rank}: the {place.world} processes of this run did not come together at {where} within "
        f"{timeout:g} s (distributed.timeout). Are all of them started, and can they reach that address? ({said})"
    )


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
