"""One network with several paths, and whole frames out of patches. Card, sections 3 and 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .bodies import bicubic_start, folded, macs_per_pixel
from .degradation import Array, Frame
from .errors import DydcaError

__all__ = ["RoutedNetwork", "as_input", "frame_macs", "groups", "reconstruct", "windows"]


class RoutedNetwork(nn.Module):
    """Paths of different depth behind one state_dict, ``paths.0.*`` the deepest. Which path a batch takes is not its
    decision: no path contains a choice.

    Args:
        paths: networks of one scale.
    """

    def __init__(self, paths: Sequence[nn.Module]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.scale = int(paths[0].scale)  # type: ignore[arg-type]

    @classmethod
    def of(cls, body: nn.Module, blocks: Sequence[int], init: str) -> RoutedNetwork:
        """Paths like ``body`` with so many blocks, hardest first, which begin as ``init`` says (bicubic or paper)."""
        paths = [body.at_depth(depth) for depth in blocks]  # type: ignore[operator]
        if init == "bicubic":
            for path in paths:
                bicubic_start(path)
        return cls(paths)

    def forward(self, x: Tensor, path: int | None = None, halo: int = 0) -> Tensor:
        """Patches with a halo, [B, 3, h + 2 halo, w + 2 halo] in [0, 1], to [B, 3, h scale, w scale] without it.

        Without a path, for whoever traces the network as a whole, the mean of all paths.
        """
        out: Tensor = torch.stack([own(x) for own in self.paths]).mean(0) if path is None else self.paths[path](x)
        edge = self.scale * halo
        return out[..., edge:-edge, edge:-edge] if edge else out

    def channel_groups(self) -> list[tuple[str, str | None, list[str]]]:
        """Hidden channels of the blocks of all paths."""
        return [
            (f"paths.{number}.{producer}", norm, [f"paths.{number}.{name}" for name in consumers])
            for number, path in enumerate(self.paths)
            for producer, norm, consumers in path.channel_groups()  # type: ignore[operator]
        ]

    def folded(self) -> RoutedNetwork:
        """The same function of plain convolutions, in eval mode; a new network."""
        return RoutedNetwork([folded(path) for path in self.paths]).eval()


def windows(frames: Frame, patches: Array, halo: int) -> Frame:
    """Low-resolution patches of one shape with what lies around them, the frame's edge repeated.

    Args:
        frames: uint8 [T, h, w, 3].
        patches: [N, >= 5]: frame, y, x, height, width.
        halo: pixels around each.

    Returns:
        uint8 [N, height + 2 halo, width + 2 halo, 3].
    """
    height, width = patches[0, 3:5]
    y = (patches[:, 1, None] + np.arange(-halo, height + halo)).clip(0, frames.shape[1] - 1)
    x = (patches[:, 2, None] + np.arange(-halo, width + halo)).clip(0, frames.shape[2] - 1)
    cut: Frame = frames[patches[:, 0, None, None], y[:, :, None], x[:, None, :]]
    return cut


def as_input(frames: Frame) -> Tensor:
    """uint8 [B, H, W, 3] as float [B, 3, H, W] in [0, 1], its memory in the order of the frames (channels last)."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def groups(patches: Array) -> Iterator[Array]:
    """Row numbers of patches of one path and one shape, group by group."""
    kinds, of_group = np.unique(patches[:, 3:6], axis=0, return_inverse=True)
    for number in range(len(kinds)):
        yield np.flatnonzero(of_group == number)


@torch.no_grad()
def reconstruct(
    frame: Frame,
    patches: Array,
    run: Callable[[int, Tensor], Tensor],
    scale: int,
    halo: int,
    *,
    largest: int | None = None,
) -> Frame:
    """One high-resolution frame: patches cut, each group of one path and shape run as a batch, and put together.

    Args:
        frame: low-resolution, uint8 [h, w, 3].
        patches: of this frame, [N, 6].
        run: ``run(path, x)``: the path's whole output for patches [B, 3, h + 2 halo, w + 2 halo] in [0, 1].
        scale: of the network.
        halo: low-resolution pixels around a patch; what they give is cut off here.
        largest: low-resolution pixels of a batch at most, halo left out; default: a group is one batch.

    Returns:
        uint8 [h scale, w scale, 3].
    """
    out = np.empty((frame.shape[0] * scale, frame.shape[1] * scale, 3), np.uint8)
    edge = halo * scale
    for rows in groups(patches):
        height, width, path = (int(value) for value in patches[rows[0], 3:6])
        count = len(rows) if largest is None else max(1, largest // (height * width))
        for start in range(0, len(rows), count):
            chosen = patches[rows[start : start + count]].copy()
            chosen[:, 0] = 0
            x = as_input(windows(frame[None], chosen, halo))
            raw = run(path, x)
            raw = raw[..., edge:-edge, edge:-edge] if edge else raw
            grey = (raw * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            for (_, top, left, _, _, _), patch in zip(chosen, grey, strict=True):
                y, x0 = top * scale, left * scale
                out[y : y + height * scale, x0 : x0 + width * scale] = patch
    return out


def frame_macs(patches: Array, frames: int, paths: Sequence[nn.Module], halo: int) -> float:
    """Multiplications of a frame, the mean over a clip, halo included."""
    costs = np.array([macs_per_pixel(path) for path in paths])
    area = (patches[:, 3] + 2 * halo) * (patches[:, 4] + 2 * halo)
    return float((area * costs[patches[:, 5]]).sum() / frames)


def require_halo(halo: int, patches: Array) -> None:
    """Raise `DydcaError` for a halo that is larger than a patch."""
    side = int(patches[:, 3:5].min())
    if halo > side:
        raise DydcaError(f"halo = {halo} is larger than the smallest patch, whose side is {side} pixels.")
