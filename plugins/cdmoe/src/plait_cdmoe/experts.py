"""The greedy choice of a layer's experts (card, section 5): a fast form, and the slow one as its oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .condensed import condensed_layer
from .decoder import Decoder, TextBatch
from .distance import WORKING, Distance
from .errors import CdmoeError
from .families import Family, activation

__all__ = ["Capture", "ExpertScores", "greedy_experts", "mean_over_texts", "slow_scores"]

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over the processes; the identity in one."""

BUDGET = 512 * 2**20
"""Bytes of expert outputs that are kept."""


@dataclass(frozen=True)
class Capture:
    """What a layer saw of n tokens: the text of each int64 [n]; its input after the norm, r + S(x) (residual plus
    shared expert), and the decoder layer's output in the original model, [n, d] each."""

    owners: Tensor
    x: Tensor
    base: Tensor
    reference: Tensor


def mean_over_texts(sums: Tensor, lengths: Tensor) -> Tensor:
    """[..., texts] sums over tokens -> mean over texts of the mean over tokens, float64; empty texts are out."""
    there = lengths > 0
    return (sums[..., there] / lengths[there]).mean(-1)


class ExpertScores:
    """The distance that each expert would give as the next one of a layer; every expert is computed once.

    The layer's input does not change during its search, so O_e = w_e f_e(x) is all that is needed:
    score(e) = distance(reference, final(base + sum of O_c + O_e)).

    Args:
        family, layer: the original model and l.
        captures: of the texts of this process.
        weights: w_e, float64 [E], NaN where there is none.
        lengths: tokens of every text, float64 [texts].
        distance: between states, after ``final``: the final norm behind the last layer, else nothing.
        reduce: the sum over processes.
        budget: bytes of expert outputs at a time; what does not fit is computed anew at each greedy step.
    """

    def __init__(
        self,
        family: Family,
        layer: int,
        captures: Sequence[Capture],
        weights: Tensor,
        lengths: Tensor,
        distance: Distance,
        final: Callable[[Tensor], Tensor],
        reduce: Reduce = lambda tensor: tensor,
        budget: int = BUDGET,
    ) -> None:
        self.up, self.down = family.stacked(layer)
        self.act, self.weights = activation(family.config), weights.nan_to_num(0.0).to(self.down)
        self.lengths, self.distance, self.final, self.reduce = lengths, distance, final, reduce
        experts, hidden, _ = self.down.shape
        row = experts * hidden * self.down.element_size()
        step = max(1, min(budget, WORKING) // (8 * max(row, 4 * experts * hidden)))
        self.chunks = [
            Capture(c.owners[s : s + step], c.x[s : s + step], c.base[s : s + step], c.reference[s : s + step])
            for c in captures
            for s in range(0, len(c.x), step)
        ]
        fits = sum(len(chunk.x) for chunk in self.chunks) * row <= budget
        self.outputs = [self._outputs(chunk.x) for chunk in self.chunks] if fits else None

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Tensor:
        """w_e f_e(x) of every expert, [E, n, d]."""
        gate, up = torch.matmul(x, self.up.transpose(1, 2)).chunk(2, -1)
        output: Tensor = torch.matmul(self.act(gate) * up, self.down.transpose(1, 2))
        return output.mul_(self.weights[:, None, None])

    @torch.no_grad()
    def __call__(self, chosen: Sequence[int]) -> Tensor:
        """Mean distance with each expert added to ``chosen``, float64 [E]."""
        sums = torch.zeros(len(self.weights), len(self.lengths), dtype=torch.float64, device=self.down.device)
        for place, chunk in enumerate(self.chunks):
            outputs = self.outputs[place] if self.outputs is not None else self._outputs(chunk.x)
            states = chunk.base + outputs[list(chosen)].sum(0) if chosen else chunk.base
            apart = self.distance(chunk.reference, self.final(states + outputs))
            sums.index_add_(1, chunk.owners, apart.double())
        return mean_over_texts(self.reduce(sums), self.lengths)


def slow_scores(
    decoder: Decoder, family: Family, layer: int, batches: Sequence[TextBatch], weights: Tensor, distance: Distance
) -> Callable[[Sequence[int]], Tensor]:
    """The same scores as the authors' code computes them, the network anew for every candidate: the tests' oracle."""
    place = family.moe_layers()[layer]
    lengths = torch.zeros(1 + max(row for batch in batches for row in batch.rows), dtype=torch.float64)
    for batch in batches:
        lengths[list(batch.rows)] = batch.ids.shape[1]

    def state(batch: TextBatch, mlp: nn.Module | None) -> Tensor:
        hidden = decoder.embed(batch)
        for before in range(len(decoder)):
            hidden = decoder.run(before, hidden, mlp if before == place else None)
            if before == place:
                after = hidden
        return decoder.final(place, after)

    def score(chosen: Sequence[int]) -> Tensor:
        scores = torch.full((len(weights),), torch.inf, dtype=torch.float64)
        for expert in range(len(weights)):
            if expert in chosen or weights[expert].isnan():
                continue
            kept = [*chosen, expert]
            mlp = condensed_layer(family, layer, kept, weights[kept].tolist())
            sums = torch.zeros_like(lengths)
            for batch in batches:
                apart = distance(state(batch, None), state(batch, mlp))
                sums[list(batch.rows)] = apart.double().sum(1).cpu()
            scores[expert] = mean_over_texts(sums, lengths)
        return scores

    return score


def greedy_experts(
    score: Callable[[Sequence[int]], Tensor], weights: Tensor, count: int, layer: int, chosen: Sequence[int] = ()
) -> Iterator[tuple[int, float]]:
    """Add the expert with the smallest distance until there are ``count`` (k); ties: the lowest index.

    Args:
        score: distances [E] with each expert added to those chosen.
        weights: w_e [E]; an expert without one (NaN) is no candidate.
        layer: l, for messages.
        chosen: where to go on.

    Yields:
        The expert and the distance with it; a prefix is the choice for a smaller k.

    Raises:
        CdmoeError: fewer experts were ever selected than are to be kept, or a distance is not finite.
    """
    candidates = [e for e, weight in enumerate(weights.tolist()) if weight == weight]
    enough(candidates, count, layer)
    so_far = list(chosen)
    while len(so_far) < count:
        scores = score(so_far)
        left = [e for e in candidates if e not in so_far]
        for e in left:
            if not bool(scores[e].isfinite()):
                raise CdmoeError(f"layer {layer}: the distance with expert {e} is {float(scores[e])}")
        values = scores.tolist()
        best = min(left, key=lambda e: (values[e], e))
        so_far.append(best)
        yield best, values[best]


def enough(candidates: Sequence[int], count: int, layer: int) -> None:
    """Refuse to keep more experts than were ever selected.

    Raises:
        CdmoeError: the layer and the numbers.
    """
    if count > len(candidates):
        raise CdmoeError(
            f"layer {layer}: {count} experts are to be kept, and only {len(candidates)} were ever selected on the "
            "calibration texts; keep fewer, or give more texts"
        )
