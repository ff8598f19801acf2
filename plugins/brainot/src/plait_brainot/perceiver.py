"""The perceiver resampler: learned latents that read tokens by attention, layer by layer (card, 2.3 and 2.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Perceiver", "Resampler"]


class LatentAttention(nn.Module):
    """Latents attend to the tokens and to themselves.

    Args:
        dim: width of both.
        heads, head_dim: of the attention.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """What is added to the latents [B, L, H]; tokens [B, T, H]."""
        tokens, latents = self.norm_media(tokens), self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([tokens, latents], 1)).chunk(2, -1)
        query = self._split(self.to_q(latents))
        read = functional.scaled_dot_product_attention(query, self._split(keys), self._split(values))
        out: Tensor = self.to_out(read.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Resampler(nn.Module):
    """``depth`` layers of attention and feed-forward around learned latents.

    Args:
        dim: H.
        depth, heads, head_dim: of the layers.
        latents: L.
    """

    def __init__(self, dim: int, depth: int, heads: int, head_dim: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.media_pos_emb = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = LatentAttention(dim, heads, head_dim)
            wide = nn.Linear(dim, 4 * dim, bias=False)
            feed_forward = nn.Sequential(nn.LayerNorm(dim), wide, nn.GELU(), nn.Linear(4 * dim, dim, bias=False))
            self.layers.append(nn.ModuleList([attention, feed_forward]))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Latents [B, L, H] that have read the tokens [B, T, H]."""
        tokens = tokens + self.media_pos_emb[0]
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, feed_forward = layer
            latents = latents + attention(tokens, latents)
            latents = latents + feed_forward(latents)
        out: Tensor = self.norm(latents)
        return out


class Perceiver(nn.Module):
    """What all subjects share: LayerNorm, resampler, and a linear head to the tokens' width.

    Args:
        hidden: H.
        depth, heads, head_dim: of the resampler.
        latents: L.
        dim: D.
    """

    def __init__(self, hidden: int, depth: int, heads: int, head_dim: int, latents: int, dim: int) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(hidden)
        self.perceiver = Resampler(hidden, depth, heads, head_dim, latents)
        self.llm_proj = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Brain tokens [B, L, D] of a subject's tokens [B, T, H]."""
        out: Tensor = self.llm_proj(self.perceiver(self.ln_vision(tokens)))
        return out
