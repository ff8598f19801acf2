"""The patch plan: which rectangles tile each frame, and which path each takes. Card, sections 1, 2 and Baselines.

A quadtree of depth P - 1 over a grid of fine cells: a square of cells that bicubic up-sampling shows badly is split
into its quarters. What the player needs of it is a bit for each square.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .clips import Clip
from .degradation import Array, Frame, upscale
from .errors import DydcaError
from .measures import CAP

__all__ = [
    "PatchPlan",
    "Scores",
    "area_share",
    "cluster_plan",
    "controlled",
    "cut_by_scores",
    "require_tiling",
    "score_clip",
]

SHAVE = 4
"""High-resolution pixels of each side of a patch that its score leaves out."""
SMALLEST = 8
"""Low-resolution pixels of a cell's side at least."""

Scores = list[npt.NDArray[np.float64]]
"""For each level, the largest squares first: PSNR in dB of each square, [T, rows, columns]."""


@dataclass(frozen=True)
class PatchPlan:
    """Rectangles that tile each frame of a clip exactly, in low-resolution pixels, and their paths.

    Attributes:
        kind: ``quadtree``, ``clusters``, ``chunks`` or ``whole``.
        frames: T.
        size: height and width of a low-resolution frame.
        grid: fine cells across and down; where they do not divide the frame the last ones take the remainder.
        paths: P; path 0 is that of the hardest patches.
        code: what the player is told, uint8: of a quadtree a bit for each square, level after level, in the order of
            frames, rows and columns, and of the next level only for squares whose parent is split; of clusters the
            path of each cell.
    """

    kind: str
    frames: int
    size: tuple[int, int]
    grid: tuple[int, int]
    paths: int
    code: Frame

    @cached_property
    def patches(self) -> Array:
        """[N, 6]: frame, y, x, height, width, path; sorted by frame, then by place.

        Raises:
            DydcaError: a code that is too short or too long.
        """
        if self.kind in ("whole", "chunks"):
            number = np.arange(self.frames)
            part = number * self.paths // self.frames
            return self._rectangles((number, 0 * number, 0 * number), max(self.grid), part)
        if self.kind == "clusters":
            cells = self._squares(1)
            code = self._ended(len(cells[0]))
            if code.max() >= self.paths:
                raise self._wrong()
            return self._rectangles(cells, 1, code)
        done, place = [], 0
        squares = self._squares(2 ** (self.paths - 1))
        for path in reversed(range(self.paths)):
            count = len(squares[0])
            split = self.code[place : place + count].astype(bool) if path else np.zeros(count, bool)
            if len(split) != count:
                raise self._wrong()
            frame, row, column = (axis[~split] for axis in squares)
            done.append(self._rectangles((frame, row, column), 2**path, path))
            if path:
                place += count
                squares = self._quarters([axis[split] for axis in squares], 2 ** (path - 1))
        self._ended(place)
        patches = np.concatenate(done)
        return patches[np.lexsort((patches[:, 2], patches[:, 1], patches[:, 0]))]

    def _squares(self, side: int) -> list[Array]:
        """Frame, row and column of all squares of so many cells, in this order."""
        rows, columns = (-(-cells // side) for cells in self.grid[::-1])
        return [axis.reshape(-1) for axis in np.indices((self.frames, rows, columns))]

    def _quarters(self, squares: Sequence[Array], side: int) -> list[Array]:
        """The quarters of squares that lie in the grid, each of so many cells, in the order of `_squares`."""
        down, right = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
        frame, row, column = squares
        frame, row, column = frame.repeat(4), (2 * row[:, None] + down).ravel(), (2 * column[:, None] + right).ravel()
        inside = (row * side < self.grid[1]) & (column * side < self.grid[0])
        order = np.lexsort((column, row, frame))
        order = order[inside[order]]
        return [frame[order], row[order], column[order]]

    def _rectangles(self, squares: Sequence[Array], side: int, path: Array | Frame | int) -> Array:
        """Squares of ``side`` cells as patches; what lies beyond the grid is cut off."""
        frame, row, column = squares
        y, x = edges(self.size, self.grid, side)
        sides = y[row + 1] - y[row], x[column + 1] - x[column]
        return np.stack([frame, y[row], x[column], *sides, path + np.zeros_like(frame)], 1)

    def _ended(self, used: int) -> Frame:
        """The entries of the code that are used; behind them may be what fills up the last byte."""
        if not 0 <= len(self.code) - used < 8 or self.code[used:].any():
            raise self._wrong()
        return self.code[:used]

    def _wrong(self) -> DydcaError:
        return DydcaError(f"a plan of {len(self.code)} entries does not fit {self.frames} frames of this grid.")

    def packed(self) -> bytes:
        """The code as it is delivered: packed bits, compressed by zlib."""
        if not len(self.code):
            return b""
        width = _bits(self.kind, self.paths)
        bits = (self.code[:, None] >> np.arange(width, dtype=np.uint8)) & 1
        return zlib.compress(np.packbits(bits.reshape(-1)).tobytes(), 9)

    @classmethod
    def unpacked(
        cls, data: bytes, kind: str, frames: int, size: tuple[int, int], grid: tuple[int, int], paths: int
    ) -> PatchPlan:
        """The plan of which ``data`` is `packed`.

        Raises:
            DydcaError: bytes that are no plan of this size.
        """
        width = _bits(kind, paths)
        try:
            bits = np.unpackbits(np.frombuffer(zlib.decompress(data), np.uint8)) if data else np.zeros(0, np.uint8)
        except zlib.error as error:
            raise DydcaError(f"the plan is damaged: {error}.") from error
        entries = bits[: len(bits) // width * width].reshape(-1, width)
        plan = cls(
            kind, frames, size, grid, paths, (entries << np.arange(width, dtype=np.uint8)).sum(1).astype(np.uint8)
        )
        require_tiling(plan.patches, frames, size)
        return plan


def _bits(kind: str, paths: int) -> int:
    """Bits of an entry of the code."""
    return 1 if kind == "quadtree" else max(1, (paths - 1).bit_length())


def area_share(patches: Array, path: int) -> float:
    """Which part of the area a path covers."""
    area = patches[:, 3] * patches[:, 4]
    return float(area[patches[:, 5] == path].sum() / area.sum())


def edges(size: tuple[int, int], grid: tuple[int, int], side: int) -> tuple[Array, Array]:
    """Where squares of ``side`` cells begin, and the end, down and across; the last cell takes what others leave."""
    y, x = (np.append(np.arange(0, cells, side) * (n // cells), n) for n, cells in zip(size, grid[::-1], strict=True))
    return y, x


def require_tiling(patches: Array, frames: int, size: tuple[int, int]) -> None:
    """Raise `DydcaError` unless the patches cover each pixel of each frame once."""
    frame, low, high = patches[:, 0], patches[:, 1:3], patches[:, 1:3] + patches[:, 3:5]
    if (low < 0).any() or (high <= low).any() or (high > size).any() or (frame < 0).any() or (frame >= frames).any():
        raise DydcaError("the plan has a patch outside of its frame.")
    rows, columns = (np.unique([0, size[axis], *low[:, axis], *high[:, axis]]) for axis in (0, 1))
    (y0, x0), (y1, x1) = ((rows.searchsorted(at[:, 0]), columns.searchsorted(at[:, 1])) for at in (low, high))
    cover = np.zeros((frames, len(rows), len(columns)), np.int64)  # how often each piece between edges is covered
    for y, x, sign in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
        np.add.at(cover, (frame, y, x), sign)
    wrong = (cover.cumsum(1).cumsum(2)[:, :-1, :-1] != 1).any((1, 2))
    if wrong.any():
        raise DydcaError(f"the plan does not tile frame {wrong.argmax() + 1} exactly: it has a gap or an overlap.")


# ---- scores ----------------------------------------------------------------------------------------------------------
def score_clip(
    clip: Clip, grid: tuple[int, int], levels: int, general: Callable[[Frame], Frame] | None = None
) -> Scores:
    """PSNR of a general model on every square of every level, over RGB, without 4 pixels of each side.

    Args:
        clip: both resolutions.
        grid: fine cells across and down.
        levels: sizes of squares, the smallest one cell.
        general: from a low-resolution frame to a high one, uint8; default: bicubic up-sampling.

    Raises:
        DydcaError: cells smaller than 8 low-resolution pixels.
    """
    height, width = clip.lr.shape[1:3]
    if width // grid[0] < SMALLEST or height // grid[1] < SMALLEST:
        raise DydcaError(
            f"grid = {grid[0]}x{grid[1]} on low-resolution frames of {width}x{height} has cells of "
            f"{width // grid[0]}x{height // grid[1]} pixels; {SMALLEST} are the least."
        )
    corners = []
    for level in range(levels):
        y, x = (clip.scale * at for at in edges((height, width), grid, 2 ** (levels - 1 - level)))
        corners.append((y[:-1] + SHAVE, y[1:] - SHAVE, x[:-1] + SHAVE, x[1:] - SHAVE))
    scores: Scores = [np.empty((len(clip), len(y0), len(x0))) for y0, _, x0, _ in corners]
    for number, (low, high) in enumerate(zip(clip.lr, clip.hr, strict=True)):
        guess = upscale(low, clip.scale) if general is None else general(low)
        wrong = np.square(guess.astype(np.int64) - high).sum(2)
        table = np.pad(wrong.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # the sum above and left of each corner
        for level, (y0, y1, x0, x1) in enumerate(corners):
            total = table[y1][:, x1] - table[y0][:, x1] - table[y1][:, x0] + table[y0][:, x0]
            mse = total / (3.0 * (y1 - y0)[:, None] * (x1 - x0))
            with np.errstate(divide="ignore"):
                scores[level][number] = np.where(mse > 0, 10 * np.log10(255**2 / mse), CAP)
    return scores


def controlled(scores: Scores, labels: str, seed: int) -> Scores:
    """The same scores in other places: by chance (``random``), or the best where the worst were (``inverted``)."""
    moved = []
    for level, values in enumerate(scores):
        flat = values.reshape(-1)
        if labels == "random":
            flat = flat[np.random.default_rng((seed, level)).permutation(len(flat))]
        elif labels == "inverted":
            order, turned = np.argsort(flat, kind="stable"), np.empty_like(flat)
            turned[order] = flat[order[::-1]]
            flat = turned
        moved.append(flat.reshape(values.shape))
    return moved


def cut_by_scores(
    scores: Scores, size: tuple[int, int], grid: tuple[int, int], thresholds: Sequence[float] | None, quantile: float
) -> tuple[PatchPlan, tuple[float, ...]]:
    """The quadtree: a square is split where its score is not above the threshold of its level.

    Args:
        scores: of all levels, the last of which decides nothing.
        size: height and width of a low-resolution frame.
        grid: fine cells across and down.
        thresholds: dB, for all levels but the last.
        quantile: where no thresholds are given: share of the squares of a level that is split.

    Returns:
        The plan, and the threshold in dB of each level; -inf where nothing is split.
    """
    levels = len(scores)
    code, used = [], []
    standing = np.ones(scores[0].shape, bool)
    for level, values in enumerate(scores[:-1]):
        asked = values[standing]
        if thresholds is not None:
            tau = float(thresholds[level])
        else:
            count = round(quantile * len(asked))
            tau = float(np.sort(asked)[count - 1]) if count else -np.inf
        bits = asked <= tau
        used.append(tau)
        code.append(bits.astype(np.uint8))
        split = np.zeros(values.shape, bool)
        split[standing] = bits
        rows, columns = scores[level + 1].shape[1:]
        standing = split.repeat(2, 1).repeat(2, 2)[:, :rows, :columns]
    plan = PatchPlan("quadtree", len(scores[0]), size, grid, levels, np.concatenate(code))
    return plan, tuple(used)


def cluster_plan(scores: Scores, size: tuple[int, int], grid: tuple[int, int], clusters: int) -> PatchPlan:
    """STDO: the fine cells of all frames, sorted by score, in clusters of equal count; path 0 has the lowest scores."""
    flat = scores[-1].reshape(-1)
    code = np.empty(len(flat), np.uint8)
    for path, cells in enumerate(np.array_split(np.argsort(flat, kind="stable"), clusters)):
        code[cells] = path
    return PatchPlan("clusters", len(scores[-1]), size, grid, clusters, code)
