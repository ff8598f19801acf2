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
from .degradation import Frame, upscale
from .errors import DydcaError
from .measures import CAP, summed_area

__all__ = [
    "PatchPlan",
    "Scores",
    "area_share",
    "cluster_plan",
    "controlled",
    "cut_by_scores",
    "require_tiling",
    "score_clip",
    "uniform_plan",
]

SHAVE = 4
"""High-resolution pixels of each side of a patch that its score leaves out."""
SMALLEST = 8
"""Low-resolution pixels of a cell's side at least."""

Array = npt.NDArray[np.int64]
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

    @property
    def levels(self) -> int:
        """Sizes of squares."""
        return self.paths if self.kind == "quadtree" else 1

    @cached_property
    def patches(self) -> Array:
        """[N, 6]: frame, y, x, height, width, path; sorted by frame, then by place.

        Raises:
            DydcaError: a code that is too short or too long.
        """
        if self.kind in ("whole", "chunks"):
            number = np.arange(self.frames)
            path = number * self.paths // self.frames
            zero, one = np.zeros_like(number), np.ones_like(number)
            return np.stack([number, zero, zero, one * self.size[0], one * self.size[1], path], 1)
        if self.kind == "clusters":
            rows, columns = self.grid[::-1]
            count = self.frames * rows * columns
            code = self._ended(count)
            if len(code) != count or code.max() >= self.paths:
                raise self._wrong()
            frame, row, column = (axis.reshape(-1) for axis in np.indices((self.frames, rows, columns)))
            return self._rectangles(frame, row, column, 1, code.astype(np.int64))
        done, place = [], 0
        nodes: tuple[Array, Array, Array] | None = None
        for level in range(self.levels):
            side = 2 ** (self.levels - 1 - level)
            rows, columns = (-(-cells // side) for cells in self.grid[::-1])
            if nodes is None:
                frame, row, column = (axis.reshape(-1) for axis in np.indices((self.frames, rows, columns)))
            else:
                frame, row, column = _quarters(*nodes, rows, columns)
            last = level == self.levels - 1
            bits = np.zeros(len(frame), bool) if last else self.code[place : place + len(frame)].astype(bool)
            if len(bits) != len(frame):
                raise self._wrong()
            place += 0 if last else len(frame)
            keep = ~bits
            path = np.full(int(keep.sum()), self.levels - 1 - level)
            done.append(self._rectangles(frame[keep], row[keep], column[keep], side, path))
            nodes = frame[bits], row[bits], column[bits]
        self._ended(place)
        patches = np.concatenate(done)
        return patches[np.lexsort((patches[:, 2], patches[:, 1], patches[:, 0]))]

    def _rectangles(self, frame: Array, row: Array, column: Array, side: int, path: Array) -> Array:
        """Squares of ``side`` cells as patches; what lies beyond the grid is cut off."""
        top, left = (edges(self.size[axis], self.grid[1 - axis]) for axis in (0, 1))
        y0, y1 = top[row * side], top[np.minimum((row + 1) * side, len(top) - 1)]
        x0, x1 = left[column * side], left[np.minimum((column + 1) * side, len(left) - 1)]
        return np.stack([frame, y0, x0, y1 - y0, x1 - x0, path], 1)

    def _ended(self, used: int) -> Frame:
        """The entries of the code that are used; behind them may be what fills up the last byte."""
        if len(self.code) - used >= 8 or self.code[used:].any():
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


def edges(side: int, cells: int) -> Array:
    """Where cells begin, and the end: the last cell takes what the others leave."""
    edges = np.arange(cells + 1, dtype=np.int64) * (side // cells)
    edges[-1] = side
    return edges


def _quarters(frame: Array, row: Array, column: Array, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """The quarters of squares that lie in the grid of the next level, in the order of frames, rows and columns."""
    down, right = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    row, column = (2 * row[:, None] + down).reshape(-1), (2 * column[:, None] + right).reshape(-1)
    frame = frame.repeat(4)
    inside = (row < rows) & (column < columns)
    frame, row, column = frame[inside], row[inside], column[inside]
    order = np.lexsort((column, row, frame))
    return frame[order], row[order], column[order]


def require_tiling(patches: Array, frames: int, size: tuple[int, int]) -> None:
    """Raise `DydcaError` unless the patches cover each pixel of each frame once."""
    low, high = patches[:, 1:3], patches[:, 1:3] + patches[:, 3:5]
    sane = (low >= 0).all() and (patches[:, 3:5] > 0).all() and (high <= np.array(size)).all()
    if not sane or (len(patches) and (patches[:, 0].min() < 0 or patches[:, 0].max() >= frames)):
        raise DydcaError("the plan has a patch outside of its frame.")
    for number in range(frames):
        cover = np.zeros((size[0] + 1, size[1] + 1), np.int64)
        for _, y, x, height, width, _ in patches[patches[:, 0] == number]:
            cover[[y, y + height, y, y + height], [x, x + width, x + width, x]] += (1, 1, -1, -1)
        if (cover.cumsum(0).cumsum(1)[:-1, :-1] != 1).any():
            raise DydcaError(f"the plan does not tile frame {number + 1} exactly: it has a gap or an overlap.")


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
        side = 2 ** (levels - 1 - level)
        y, x = (
            np.append(edges(n, cells)[:-1:side], n) * clip.scale for n, cells in ((height, grid[1]), (width, grid[0]))
        )
        corners.append((y[:-1] + SHAVE, y[1:] - SHAVE, x[:-1] + SHAVE, x[1:] - SHAVE))
    scores: Scores = [np.empty((len(clip), len(y0), len(x0))) for y0, _, x0, _ in corners]
    for number, (low, high) in enumerate(zip(clip.lr, clip.hr, strict=True)):
        guess = upscale(low, clip.scale) if general is None else general(low)
        wrong = np.square(guess.astype(np.int64) - high).sum(2)
        table = summed_area(wrong)
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


def uniform_plan(kind: str, frames: int, size: tuple[int, int], grid: tuple[int, int], paths: int) -> PatchPlan:
    """Whole frames on one path (``whole``), or on a path for each equal part of the time (``chunks``).

    Raises:
        DydcaError: more parts than frames.
    """
    if paths > frames:
        raise DydcaError(f"{paths} parts of the time for {frames} frames: give fewer blocks.")
    return PatchPlan(kind, frames, size, grid, paths, np.zeros(0, np.uint8))
