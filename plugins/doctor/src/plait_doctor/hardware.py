"""The machine: devices that torch can use, processor, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from plait_doctor.finding import Case, Finding

GIB = 2**30
NVIDIA = "0x10de"
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 1 * GIB, 2 * GIB, 100 * 2**20
"""Bytes below which memory or disk is worth a warning, and below which a checkpoint hardly fits."""


# ---- devices -----------------------------------------------------------------------------------------------------
def torch(case: Case) -> Iterator[Finding]:
    """Which devices torch can use, found out in a process of its own, and a product of matrices on each."""
    yield from judge_torch(case.torch.result(), card=has_card(), driver=has_driver())


def judge_torch(answer: Mapping[str, Any], *, card: bool, driver: bool) -> Iterator[Finding]:
    """What to say of what the probe found.

    Args:
        answer: the answer of the probe ``torch``.
        card: whether the machine has an NVIDIA card.
        driver: whether its driver is loaded.
    """
    if "failed" in answer:
        yield Finding(
            "torch", "problem", f"it cannot be imported: {answer['failed']}", "Nothing trains without it.", _reinstall()
        )
        return
    build = f"CUDA {answer['cuda']}" if answer["cuda"] else f"ROCm {answer['hip']}" if answer["hip"] else "the CPU only"
    yield Finding("torch", "ok", f"torch {answer['version']}, built for {build}", details=answer)
    gpus = [d for d in answer["devices"] if d["device"].startswith(("cuda", "mps"))]
    for device in answer["devices"]:
        name, error = device["device"], device["error"]
        if error:
            why = "Runs on it fail." if name == "cpu" else "Runs on it fail; --device auto takes it. Use --device cpu."
            fix = (
                _reinstall()
                if name == "cpu"
                else "install a torch built for this device: https://pytorch.org/get-started"
            )
            yield Finding(name, "problem", f"a product of two matrices failed: {error}", why, fix, details=device)
            continue
        said = ["works"]
        if "memory" in device:
            said = [f"{device['name']}, {_size(device['free'])} of {_size(device['memory'])} free", "works"]
        if device["bf16"]:
            said.append(f"no bfloat16 ({device['bf16']})")
        yield Finding(name, "ok", ", ".join(said), details=device)
    if not gpus:
        yield _without_gpu(answer, card, driver)


def _without_gpu(answer: Mapping[str, Any], card: bool, driver: bool) -> Finding:
    hidden = answer["visible"]
    if answer["cuda"] and driver and hidden is not None and hidden.strip() in ("", "-1"):
        fix = "unset CUDA_VISIBLE_DEVICES"
        return Finding("gpu", "ok", "hidden by CUDA_VISIBLE_DEVICES; runs use the CPU", fix=fix)
    if answer["cuda"] and driver:
        said = f": {answer['warnings'][0]}" if answer["warnings"] else ""
        why = "Runs use the CPU, many times slower."
        fix = f"nvidia-smi shows the driver; torch {answer['version']} needs one for CUDA {answer['cuda']}"
        return Finding("gpu", "problem", f"there is an NVIDIA driver, and torch cannot use it{said}", why, fix)
    if driver:
        why = "Runs use the CPU, many times slower."
        fix = "pip install -U --force-reinstall torch, the build of https://pytorch.org/get-started for this driver"
        return Finding("gpu", "warning", "there is an NVIDIA driver, and torch is built without CUDA", why, fix)
    if card:
        why = "Runs use the CPU, many times slower."
        fix = "install the NVIDIA driver of your system"
        return Finding("gpu", "warning", "there is an NVIDIA card and no driver for it", why, fix)
    note = f" (torch is built for CUDA {answer['cuda']}; that does no harm)" if answer["cuda"] else ""
    return Finding("gpu", "ok", f"none on this machine; runs use the CPU{note}")


def has_card(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a display controller of NVIDIA is on the bus (Linux)."""
    for device in root.glob("*"):
        try:
            if (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def has_driver() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return (
        Path("/proc/driver/nvidia/version").exists()
        or Path("/dev/nvidia0").exists()
        or bool(shutil.which("nvidia-smi"))
    )


def _reinstall() -> str:
    return "pip install --force-reinstall torch, the build of https://pytorch.org/get-started for this machine"


def torchvision(case: Case) -> Iterator[Finding]:
    """Whether torch and torchvision are of one build: their wheels from two places do not fit."""
    try:
        installed = version("torchvision")
    except PackageNotFoundError:
        yield Finding(
            "torchvision", "ok", "not installed; only some networks and data need it", fix="pip install torchvision"
        )
        return
    answer = case.torchvision.result()
    if "failed" not in answer:
        text = f"torchvision {installed} works with torch {answer['torch']}"
        yield Finding("torchvision", "ok", text, details=answer)
        return
    if "failed" in (base := case.torch.result()):
        yield Finding("torchvision", "problem", "torch itself cannot be imported", "See torch above.", _reinstall())
        return
    build = version("torch").partition("+")[2]  # PyPI's wheels have no such part in their metadata
    fix = "pip install -U --force-reinstall torch torchvision"
    if build:
        fix = f"pip install --force-reinstall torchvision --index-url https://download.pytorch.org/whl/{build}"
    text = f"torchvision {installed} does not work with torch {base['version']}: {answer['failed']}"
    why = "Both must come from one place: the CPU wheel of torch and PyPI's torchvision, for example, do not fit."
    yield Finding("torchvision", "problem", text, why, fix)


# ---- the rest of the machine -------------------------------------------------------------------------------------
def processor(case: Case) -> Iterator[Finding]:
    """Cores that may be used, and threads that torch takes."""
    cores, quota = usable_cores(), cpu_quota()
    asked = os.environ.get("OMP_NUM_THREADS")
    threads = case.torch.result().get("threads")
    details = {"cores": os.cpu_count(), "usable": cores, "quota": quota, "OMP_NUM_THREADS": asked, "threads": threads}
    text = f"{cores} cores" + (f", of which {quota:g} may be busy" if quota else "")
    text += f"; torch's threads: {threads}" if threads else ""
    text += f" (OMP_NUM_THREADS={asked})" if asked else ""
    limit = max(1, int(min(cores, quota or cores)))
    if asked is not None and not asked.split(",")[0].strip().isdigit():
        why = "It is not a number and is ignored."
        yield Finding("processor", "warning", text, why, f"export OMP_NUM_THREADS={limit}", details=details)
    elif threads and threads > limit:
        why = "More threads than cores hinder each other: runs get slower, not faster."
        yield Finding("processor", "warning", text, why, f"export OMP_NUM_THREADS={limit}", details=details)
    else:
        yield Finding("processor", "ok", text, details=details)


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores' worth of time that a container may use; None without a limit."""
    try:
        share, period = file.read_text().split()
        return None if share == "max" else int(share) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def memory(case: Case) -> Iterator[Finding]:
    """Memory that is free, the limit of a container counted in."""
    import psutil

    system = psutil.virtual_memory()
    total, free = int(system.total), int(system.available)
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, max(0, min(free, limit - (used or 0)))
    details = {"total": total, "free": free}
    text = f"{_size(free)} of {_size(total)} free"
    if free < LITTLE_MEMORY:
        why = "The system ends a run that needs more."
        yield Finding(
            "memory", "warning", text, why, "close other programs, or --set train.batch_size=16", details=details
        )
    else:
        yield Finding("memory", "ok", text, details=details)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def cache_folder() -> Path:
    """``plait`` in the user's cache folder (``~/.cache/plait``, or under ``$XDG_CACHE_HOME``); it need not exist."""
    return Path(user_cache_dir("plait", appauthor=False))


def disk(case: Case) -> Iterator[Finding]:
    """Space in the present folder, where runs go, and in the cache."""
    for name, folder in (("disk", case.folder.absolute()), ("cache", cache_folder())):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        details = {"folder": str(folder), "free": free}
        text = f"{_size(free)} free for {folder}"
        if free < LITTLE_DISK:
            why = "A run ends when its checkpoint does not fit; nothing is left half written."
            fix = "plait runs lists runs to delete; --out DIR takes another disk"
            yield Finding(name, "problem" if free < NO_DISK else "warning", text, why, fix, details=details)
        elif not os.access(there, os.W_OK):
            if name == "cache":
                yield Finding(name, "ok", f"{there} cannot be written; data is parsed anew each time", details=details)
                continue
            why = "Runs are written into the present folder unless --out says otherwise."
            yield Finding(
                name, "warning", f"{there} cannot be written", why, "cd to a folder of yours, or --out", details=details
            )
        else:
            yield Finding(name, "ok", text, details=details)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
