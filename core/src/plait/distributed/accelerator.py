"""Device, precision and ranks through Accelerate."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.distributed import TCPStore, init_process_group, is_initialized  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from plait.declare.recipe import Recipe
from plait.distributed.processes import Place, current
from plait.distributed.ranks import broken_exchange
from plait.errors import BadInput, PlaitError, RunFailed, first_line


def make_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """Accelerate's view of a recipe's device, precision and ranks; with several processes it brings them together.

    The recipe's loggers write to ``folder``.

    Raises:
        BadInput: a device that is not here, a logger that is not installed, or a port that is taken.
        RunFailed: the other processes did not come.
    """
    device, place = recipe.device, current()
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
    AcceleratorState._reset_state(reset_partial_state=True)
    cpu = device == "cpu" or (not place.alone and device == "auto" and not torch.cuda.is_available())
    try:
        if not place.alone:
            _meet(place, "gloo" if cpu else "nccl", recipe.distributed.timeout)
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision],
            log_with=list(recipe.loggers) or None,
            project_dir=str(folder),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.distributed.timeout)),
                DistributedDataParallelKwargs(find_unused_parameters=recipe.distributed.unused_parameters),
            ],
        )
    except RuntimeError as error:
        if not broken_exchange(error):
            raise
        raise _not_together(error, place, recipe.distributed.timeout) from error
    except (ValueError, ImportError) as error:
        raise BadInput(f"device {device}, precision {recipe.precision}: {error}") from error
    if recipe.loggers:
        if not accelerator.trackers and set(map(str, accelerator.log_with)) < set(recipe.loggers):
            raise BadInput(f"loggers {list(recipe.loggers)}: not installed; pip install {' '.join(recipe.loggers)}.")
        accelerator.init_trackers("plait", config={"seed": recipe.seed, "plugins": " ".join(recipe.plugins)})
    return accelerator


def _meet(place: Place, backend: str, timeout: float) -> None:
    """Bring the processes together through the store of an elastic agent, under keys of this attempt.

    The agent keeps one store over its restarts. Under the same keys a process would read where the lost one listened.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or is_initialized():
        return
    limit = timedelta(seconds=timeout)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, place.world, is_master=False, timeout=limit)
    attempt = PrefixStore(f"plait/attempt-{place.restart}-of-{place.world}", store)
    init_process_group(backend, store=attempt, rank=place.rank, world_size=place.world, timeout=limit)


def _not_together(error: Exception, place: Place, timeout: float) -> PlaitError:
    """Why the processes could not be brought together."""
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    said = first_line(error)
    if "EADDRINUSE" in str(error) or "address already in use" in str(error):
        return BadInput(f"the port of {where} is taken on this machine: choose another MASTER_PORT. ({said})")
    return RunFailed(
        f"rank {place.rank}: the {place.world} processes of this run did not come together at {where} within "
        f"{timeout:g} s (distributed.timeout). Are all of them started, and can they reach that address? ({said})"
    )
