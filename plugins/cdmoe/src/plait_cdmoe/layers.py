"""The greedy choice of the layers that are condensed (card, section 6).

A candidate differs from the layers chosen so far only from its own layer on. So all candidates are carried through the
network together: each leaves the common states where its layer is, and every layer's weights are needed once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .decoder import Decoder, TextBatch
from .distance import Distance
from .errors import CdmoeError
from .experts import Reduce, mean_over_texts

__all__ = ["Beam", "LayerSearch"]

ROWS = 64
"""Rows of [R, T, d] that a layer computes at once."""


@dataclass(frozen=True)
class Beam:
    """Layers chosen so far, in their order, and the distance after each of them."""

    order: tuple[int, ...] = ()
    distances: tuple[float, ...] = ()


@dataclass
class LayerSearch:
    """Distances of the final states when layers are replaced.

    Args:
        decoder: the original model.
        places: decoder index of each of the L layers.
        replacement: l -> the module that takes the place of its MLP; asked while the layer has its weights.
        batches, lengths, distance, reduce: as of `plait_cdmoe.experts.ExpertScores`.
    """

    decoder: Decoder
    places: Sequence[int]
    replacement: Callable[[int], nn.Module]
    batches: Sequence[TextBatch]
    lengths: Tensor
    distance: Distance
    reduce: Reduce = lambda tensor: tensor
    _reference: list[Tensor] = field(default_factory=list)

    def scores(self, order: Sequence[int]) -> Tensor:
        """Mean distance with each layer condensed besides those of ``order``, float64 [L]; inf for these."""
        if not self._reference:
            self._reference = [state for span in self._spans() for state in self._carry(span, (), ())[0]]
        candidates = [layer for layer in range(len(self.places)) if layer not in order]
        sums = torch.zeros(len(self.places), len(self.lengths), dtype=torch.float64, device=self.lengths.device)
        references = iter(self._reference)
        for span in self._spans():
            _, forks = self._carry(span, order, candidates)
            for batch, states in zip(span, forks, strict=True):
                apart = self.distance(next(references), states).double().sum(-1)  # [C, B]
                cells = torch.tensor(candidates)[:, None], torch.tensor(batch.rows)
                sums[cells] = apart.to(sums.device)
        scores = mean_over_texts(self.reduce(sums), self.lengths)
        scores[list(order)] = torch.inf
        return scores

    def _spans(self) -> list[Sequence[TextBatch]]:
        """Batches that go through the layers together: one by one, or all where weights have to be fetched."""
        return [[batch] for batch in self.batches] if self.decoder.weights.resident else [self.batches]

    def _carry(
        self, span: Sequence[TextBatch], order: Sequence[int], candidates: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Final states [B, T, d] of each batch with ``order`` replaced, and [C, B, T, d] of the candidates."""
        decoder, layer_at = self.decoder, {place: layer for layer, place in enumerate(self.places)}
        common = [decoder.embed(batch) for batch in span]
        forks = [state.new_empty(0, *state.shape) for state in common]
        for place in range(len(decoder)):
            layer = layer_at.get(place)
            with decoder.weights.of(place):
                other = self.replacement(layer) if layer is not None and layer in (*order, *candidates) else None
                chosen = other if layer in order else None
                for at, state in enumerate(common):
                    forks[at] = self._run(place, forks[at], chosen)
                    if layer in candidates:
                        forks[at] = torch.cat([forks[at], decoder.run(place, state, other)[None]])
                    common[at] = decoder.run(place, state, chosen)
        last = len(decoder) - 1
        return [decoder.final(last, state) for state in common], [decoder.final(last, state) for state in forks]

    def _run(self, place: int, states: Tensor, mlp: nn.Module | None) -> Tensor:
        """A decoder layer on [C, B, T, d]."""
        if not len(states):
            return states
        parts = torch.split(states.flatten(0, 1), ROWS)
        return torch.cat([self.decoder.run(place, part, mlp) for part in parts]).reshape(states.shape)

    def step(self, beams: Sequence[Beam], width: int) -> list[Beam]:
        """The best ``width`` ways to replace one layer more. Two orders of one set are one; ties: the lowest layer.

        Raises:
            CdmoeError: a distance is not finite.
        """
        ways: dict[frozenset[int], Beam] = {}
        for beam in beams:
            for layer, value in enumerate(self.scores(beam.order).tolist()):
                if layer in beam.order:
                    continue
                if not math.isfinite(value):
                    raise CdmoeError(f"the distance with layer {layer} condensed is {value}")
                way = Beam((*beam.order, layer), (*beam.distances, value))
                there = ways.get(frozenset(way.order))
                if there is None or value < there.distances[-1]:
                    ways[frozenset(way.order)] = way
        return sorted(ways.values(), key=lambda way: (way.distances[-1], way.order))[:width]
