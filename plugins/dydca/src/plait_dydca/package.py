"""What is delivered: a folder with the low-resolution video, the plan, the weights, and a manifest with checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from .bodies import EDSR, ESPCN, WDSR, Body
from .clips import Clip, read_frames
from .degradation import Array, Frame
from .errors import DydcaError
from .network import RoutedNetwork, reconstruct, require_halo
from .quadtree import PatchPlan
from .routing import Gate, Routing, by_shape
from .runtimes import Runtime

__all__ = ["Package", "PictureWriter", "VideoWriter", "frames_to", "open_package", "write_package"]

FORMAT = 1
MANIFEST, WEIGHTS, PLAN, VIDEO, PICTURES = "manifest.json", "weights.safetensors", "plan.bin", "lr.mkv", "lr"
BODIES: Mapping[str, type[Body]] = {"WDSR": WDSR, "EDSR": EDSR, "ESPCN": ESPCN}
TICKS = 90_000
"""Of a second, in the time stamps of written videos."""
LARGEST = 16 * 54 * 48
"""Low-resolution pixels of a batch in playing: 16 fine cells of the published grid."""


# ---- writing ---------------------------------------------------------------------------------------------------------
def write_package(folder: Path, network: RoutedNetwork, routing: Routing, clip: Clip, *, half: bool = False) -> int:
    """Write all that a player needs to ``folder``, whole or not at all.

    Args:
        folder: new, or empty.
        network: trained; its weight normalisation is folded.
        routing: of the clip.
        clip: its low-resolution frames are written, without loss.
        half: weights in half precision.

    Returns:
        Bytes of weights and plan.

    Raises:
        DydcaError: a folder with something in it, or a network that a package cannot describe.
    """
    require_free(folder)
    plain = network.folded().cpu()
    first = plain.paths[0]
    kind = type(first).__name__
    if BODIES.get(kind) is not type(first):
        raise DydcaError(f"a package holds paths of {', '.join(BODIES)}, not of {kind}.")
    used = set(routing.used)
    weights = {
        name: (value.half() if half else value).contiguous()
        for name, value in plain.state_dict().items()
        if int(name.split(".")[1]) in used
    }
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        (scratch / WEIGHTS).write_bytes(save(weights))
        plan = routing.plan
        if routing.gate is None:
            (scratch / PLAN).write_bytes(plan.packed())
        with frames_to(scratch / (PICTURES if find_spec("av") is None else VIDEO)) as writer:
            for frame, time in zip(clip.lr, clip.times, strict=True):
                writer.write(np.asarray(frame), time)
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "method": "dydca",
            "clip": clip.name,
            "scale": clip.scale,
            "frames": len(clip),
            "size": list(plan.size),
            "times": list(clip.times),
            "plan": {"kind": plan.kind, "grid": list(plan.grid), "paths": plan.paths},
            "gate": None if routing.gate is None else [routing.gate.weight, routing.gate.bias],
            "by_shape": bool((routing.patches[:, 5] != plan.patches[:, 5]).any()),
            "halo": routing.halo,
            "body": {"kind": kind, "settings": dict(first.settings)},
            "blocks": [int(path.blocks) for path in plain.paths],  # type: ignore[arg-type]
            "used": sorted(used),
            "files": {
                path.relative_to(scratch).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)}
                for path in files
            },
        }
        manifest["sha256"] = _digest(manifest)
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.replace(scratch, folder)
    except OSError as error:
        raise DydcaError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sum((folder / name).stat().st_size for name in (WEIGHTS, PLAN) if (folder / name).exists())


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in a manifest."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def require_free(folder: Path) -> None:
    """Raise `DydcaError` for a folder that has something in it, or a file of that name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DydcaError(f"{folder} is not empty: choose another --out.")


def checksum(file: Path) -> str:
    """SHA-256 of a file, read in parts."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def frames_to(target: Path) -> Iterator[PictureWriter | VideoWriter]:
    """What writes frames to a video file, or to a new folder where the name has no ending; whole or not at all."""
    place = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(place) if target.suffix else PictureWriter(place) as writer:
            yield writer
        os.replace(place, target)
    finally:
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)


class PictureWriter:
    """Frames into a new folder, as PNG files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.count = folder, 0

    def __enter__(self) -> PictureWriter:
        return self

    def write(self, frame: Frame, time: float) -> None:
        """Append an RGB frame, uint8 [H, W, 3]; a picture has no time."""
        self.count += 1
        Image.fromarray(frame).save(self.folder / f"{self.count:06}.png")

    def __exit__(self, *_: object) -> None: ...


class VideoWriter:
    """Frames into a video file, with their times: ``.mkv`` without loss (FFV1), anything else as H.264.

    Raises:
        DydcaError: PyAV is not here, or no video can be written with this ending.
    """

    def __init__(self, file: Path) -> None:
        if find_spec("av") is None:
            raise DydcaError(f"{file}: writing a video takes PyAV: pip install 'plait-dydca[video]'; or give a folder.")
        import av

        self.lossless = file.suffix.lower() == ".mkv"
        try:
            self.container: Any = av.open(str(file), "w")
            codec, options = ("ffv1", {}) if self.lossless else ("libx264", {"crf": "12"})
            self.stream: Any = self.container.add_stream(codec, options=options)
        except (ValueError, OSError) as error:
            raise DydcaError(f"no video can be written with the ending {file.suffix}: {error}.") from error

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: Frame, time: float) -> None:
        """Append an RGB frame, uint8 [H, W, 3], that is shown at ``time`` seconds."""
        import av

        if not self.stream.codec_context.is_open:
            height, width = frame.shape[:2]
            self.stream.width, self.stream.height = width, height
            even = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
            self.stream.pix_fmt = "bgr0" if self.lossless else even
            self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, TICKS)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = round(time * TICKS), Fraction(1, TICKS)
        self.container.mux(self.stream.encode(picture))

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.container.mux(self.stream.encode())
        self.container.close()


# ---- reading ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Package:
    """A package that was read and checked.

    Attributes:
        folder: where it lies.
        manifest: as written.
        network: the paths, plain convolutions in eval mode; a path that no patch takes is left empty.
        patches: [N, 6], with the paths that they take; none where a gate makes them, frame by frame.
    """

    folder: Path
    manifest: Mapping[str, Any]
    network: RoutedNetwork
    patches: Array
    gate: Gate | None

    def __len__(self) -> int:
        return int(self.manifest["frames"])

    def frames(self, runtime: Runtime) -> Iterator[tuple[Frame, float]]:
        """The reconstructed frames uint8 [H, W, 3] and their times, one after another; memory does not grow.

        Raises:
            DydcaError: low-resolution frames that cannot be decoded or are too few.
        """
        low = self.folder / (VIDEO if (self.folder / VIDEO).exists() else PICTURES)
        halo, scale, size = self.manifest["halo"], self.manifest["scale"], tuple(self.manifest["size"])
        count, grid = 0, tuple(self.manifest["plan"]["grid"])
        starts = np.searchsorted(self.patches[:, 0], np.arange(len(self) + 1))
        for (frame, _), time in zip(read_frames(low), self.manifest["times"], strict=False):
            if frame.shape[:2] != size:
                raise DydcaError(f"{low}: frame {count + 1} has another size than the manifest says.")
            patches = self.patches[starts[count] : starts[count + 1]]
            if self.gate is not None:
                patches = self.gate.plan(frame[None], grid).patches
            yield reconstruct(frame, patches, runtime, scale, halo, largest=LARGEST), time
            count += 1
        if count != len(self):
            raise DydcaError(f"{low} holds {count} of {len(self)} frames.")


def open_package(folder: Path) -> Package:
    """Read a package, every byte of it checked.

    Raises:
        DydcaError: no package, one of another format, or one that was cut off or altered, naming the file.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DydcaError(f"{folder} is no package: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise DydcaError(f"{file} is damaged: {error}.") from error
    known = isinstance(manifest, dict) and manifest.get("method") == "dydca"
    if not known or not isinstance(manifest.get("files"), dict):
        raise DydcaError(f"{file} is no manifest of dydca.")
    if manifest.get("format") != FORMAT:
        raise DydcaError(f"{file} has the format {manifest.get('format')}; this version reads {FORMAT}.")
    if manifest.get("sha256") != _digest(manifest):
        raise DydcaError(f"{file} is not what was delivered: it was altered.")
    try:
        for name, wanted in manifest["files"].items():
            part = folder / name
            if not part.is_file():
                raise DydcaError(f"{folder}: {name} is missing; the package is incomplete.")
            if part.stat().st_size != wanted["bytes"] or checksum(part) != wanted["sha256"]:
                raise DydcaError(f"{part} is not what was delivered: it was cut off or altered.")
        return _built(folder, manifest)
    except (KeyError, TypeError, ValueError, IndexError, OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, DydcaError):
            raise
        raise DydcaError(f"{file} was altered: {type(error).__name__}: {error}.") from error


def _built(folder: Path, manifest: Mapping[str, Any]) -> Package:
    weights = load_file(folder / WEIGHTS)
    body, scale, frames = BODIES[manifest["body"]["kind"]], manifest["scale"], manifest["frames"]
    # without weight normalisation; the weights are still to come
    network = RoutedNetwork(
        [body(scale, blocks, **manifest["body"]["settings"]) for blocks in manifest["blocks"]]
    ).folded()
    for name, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d) and f"{name}.weight" in weights:
            weight = weights.pop(f"{name}.weight").float()
            conv.out_channels, conv.in_channels = weight.shape[:2]
            conv.weight = nn.Parameter(weight)
            bias = weights.pop(f"{name}.bias", None)
            conv.bias = None if bias is None else nn.Parameter(bias.float())
        elif isinstance(conv, nn.Conv2d) and int(name.split(".")[1]) in manifest["used"]:
            raise DydcaError(f"{folder / WEIGHTS} has no {name}.weight.")
    if weights:
        raise DydcaError(f"{folder / WEIGHTS} has {next(iter(weights))}, which the network does not have.")
    size, plan = tuple(manifest["size"]), manifest["plan"]
    gate = None if manifest["gate"] is None else Gate(*map(float, manifest["gate"]))
    patches = np.zeros((0, 6), np.int64)
    if len(manifest["times"]) != frames:
        raise DydcaError(f"{folder / MANIFEST} was altered: {len(manifest['times'])} times for {frames} frames.")
    if gate is None:
        data = (folder / PLAN).read_bytes()
        known = PatchPlan.unpacked(data, plan["kind"], frames, size, tuple(plan["grid"]), plan["paths"])
        patches = known.patches.copy()
        require_halo(manifest["halo"], patches)
        if manifest["by_shape"]:
            patches[:, 5] = by_shape(known)
    return Package(folder, manifest, network, patches, gate)
