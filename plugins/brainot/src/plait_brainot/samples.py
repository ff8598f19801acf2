"""A split of brain samples: voxels in memory, and the image tokens of what each sample saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plait import Batch, TensorSplit

from .errors import BrainotError

__all__ = ["FIELDS", "Samples", "tokens_of"]

FIELDS = frozenset({"input", "target", "subject", "scene", "index"})
"""Fields of every batch of brain samples; ``target`` are the image tokens."""


class Samples:
    """Rows of voxels, each of one subject and one scene.

    Args:
        voxels: float32 [n, V].
        columns: ``subject`` and ``scene``, and more, integers [n].
        tokens: of all scenes [S, M, D], in memory or mapped from a file; row ``scene`` is handed out as ``target``.
        fingerprint: says which data it is.

    Raises:
        BrainotError: voxels that are not finite, or a scene without tokens.
    """

    in_memory = True

    def __init__(self, voxels: Any, columns: Mapping[str, Any], tokens: Any, fingerprint: str) -> None:
        whole = TensorSplit({"input": voxels, **columns})
        self.fields: dict[str, Tensor] = dict(whole.fields)
        self.tokens, self.fingerprint, self._whole = tokens, fingerprint, whole
        bad = (~self.fields["input"].isfinite()).any(0).nonzero().flatten().tolist()
        if bad:
            shown = ", ".join(map(str, bad[:5])) + " ..." * (len(bad) > 5)
            raise BrainotError(
                f"{len(bad)} voxels have NaN or infinite betas (voxels {shown}): leave them out, or nan=zero"
            )
        if len(self) and int(self.fields["scene"].max()) >= len(tokens):
            raise BrainotError(f"scene {int(self.fields['scene'].max())} has no image tokens; there are {len(tokens)}")

    def __len__(self) -> int:
        return len(self._whole)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        batch = self._whole.__getitems__(rows)
        return Batch({**batch, "target": tokens_of(self.tokens, batch["scene"])})


def tokens_of(tokens: Any, scene: Tensor) -> Tensor:
    """Image tokens float32 [n, M, D] of these scenes, from a tensor or from an array that a file is mapped to."""
    chosen: Tensor = tokens[scene] if isinstance(tokens, Tensor) else torch.from_numpy(tokens[scene.numpy()])
    return chosen.float()
