"""The brain encoder: a tokenizer for each subject, and a perceiver that all share (card, 2.3).

The names of its tensors are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BrainotError
from .options import EncoderOptions
from .perceiver import Perceiver
from .tokenizer import tokens_naive, tokens_of_rank_one

__all__ = ["BrainEncoder", "build"]


def _key(subject: int) -> str:
    return f"fmri{subject}"


class BrainEncoder(nn.Module):
    """From voxels to brain tokens.

    Args:
        voxels: subject -> V, the number of its voxels.
        latents: L = N, the number of brain tokens.
        dim: D, width of a token.
        options: sizes of the perceiver, and the tokenizer's form.
    """

    def __init__(self, voxels: Mapping[int, int], latents: int, dim: int, options: EncoderOptions) -> None:
        super().__init__()
        self.voxels, self.latents, self.dim, self.options = dict(voxels), latents, dim, options
        hidden = options.hidden
        self.lin1 = nn.ModuleDict({_key(s): nn.Linear(1, latents) for s in voxels})
        self.lin2 = nn.ModuleDict({_key(s): nn.Linear(count, hidden) for s, count in voxels.items()})
        self.token = nn.ParameterDict()
        if options.subject_tokens:
            for subject in voxels:
                self.token[_key(subject)] = nn.Parameter(0.02 * torch.randn(options.subject_tokens, hidden))
        self.between = (
            nn.ModuleDict({_key(s): nn.Sequential(nn.LayerNorm(latents), nn.GELU(), nn.Dropout(0.5)) for s in voxels})
            if options.nonlinear
            else None
        )
        self.perceiver = Perceiver(hidden, options.depth, options.heads, options.head_dim, latents, dim)

    def tokens(self, x: Tensor, subject: int) -> Tensor:
        """The tokenizer of one subject: voxels [B, V] to [B, L, H], by the rank-one shortcut where it holds."""
        key = _key(subject)
        lin1, lin2 = self.lin1[key], self.lin2[key]
        assert isinstance(lin1, nn.Linear)
        assert isinstance(lin2, nn.Linear)
        if self.between is None and not self.options.naive_tokenizer:
            tokens = tokens_of_rank_one(x, lin1, lin2)
        else:
            tokens = tokens_naive(x, lin1, lin2, None if self.between is None else self.between[key])
        if key in self.token:
            tokens = torch.cat([tokens, self.token[key].expand(len(x), -1, -1)], 1)
        return tokens

    def forward(self, x: Tensor, subject: Tensor | None = None) -> Tensor:
        """Brain tokens P [B, N, D].

        Args:
            x: z-scored voxels [B, V]; of several subjects filled up with zeros to the most voxels.
            subject: of each sample, int64 [B]; may be left out where there is one.

        Raises:
            BrainotError: another number of voxels, or a subject that the encoder does not know.
        """
        if x.ndim != 2:
            raise BrainotError(f"voxels must be [B, V], got {list(x.shape)}: choose a repetition, or their mean")
        known = ", ".join(map(str, self.voxels))
        if len(self.voxels) == 1:
            ((alone, count),) = self.voxels.items()
            return self._read(self._voxels(x, alone, count), alone)
        if subject is None:
            raise BrainotError(f"which subject? The encoder knows {known}: give the field")
        out: Tensor | None = None
        for number in torch.unique(subject).tolist():
            if number not in self.voxels:
                raise BrainotError(f"subject {number} has no tokenizer; there are {known}")
            rows = (subject == number).nonzero().flatten()
            given = self._read(self._voxels(x[rows], number, self.voxels[number], wider=True), number)
            out = given.new_zeros(len(x), *given.shape[1:]) if out is None else out
            out = out.index_copy(0, rows, given)
        assert out is not None
        return out

    def _read(self, x: Tensor, subject: int) -> Tensor:
        result: Tensor = self.perceiver(self.tokens(x, subject))
        return result

    def _voxels(self, x: Tensor, subject: int, count: int, wider: bool = False) -> Tensor:
        if x.shape[1] == count or (wider and x.shape[1] > count):
            return x[:, :count]
        raise BrainotError(f"{x.shape[1]} voxels where the tokenizer of subject {subject} has {count}")

    def channel_groups(self) -> list[tuple[str, str | None, list[str]]]:
        """The hidden channels of each feed-forward layer, which can be removed."""
        stem = "perceiver.perceiver.layers"
        return [(f"{stem}.{i}.1.1", None, [f"{stem}.{i}.1.3"]) for i in range(self.options.depth)]


def build(options: EncoderOptions, info: Any) -> nn.Module:
    """The model ``brain-encoder`` for a data set that says how many voxels and tokens there are.

    Raises:
        BrainotError: data of another kind, or a checkpoint that does not fit.
    """
    from .checkpoint import load_checkpoint

    try:
        voxels, (count, dim) = info.extra["voxels"], info.extra["tokens"]
    except KeyError as error:
        raise BrainotError(
            f"the data do not say their {error}: info.extra needs voxels {{subject: V}} and tokens (M, D)"
        ) from None
    model = BrainEncoder(voxels, options.latents or count, dim, options)
    if options.checkpoint is not None:
        load_checkpoint(model, options.checkpoint)
    if options.freeze_shared:
        model.perceiver.requires_grad_(False)
    return model
