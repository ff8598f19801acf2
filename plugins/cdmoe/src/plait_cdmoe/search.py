"""The whole search: gate statistics, experts of every layer, layers; and the model that it leads to.

A search that goes on from a stored state ends with the lists of one that was not interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .condensed import CondensedMLP, condensed_layer
from .decoder import Decoder, batches_of
from .distance import distance
from .errors import CdmoeError
from .experts import Capture, ExpertScores, Reduce, enough, greedy_experts
from .families import Family
from .gates import gates_by_text, in_order, most
from .layers import Beam, LayerSearch
from .options import SearchOptions
from .state import SearchState
from .trimming import Nothing, without_blocks, without_layers

__all__ = ["Condensed", "Search", "SearchState", "calibration_hash", "condense"]

ELSEWHERE = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "experts_implementation"}
"""Entries of a model's configuration that its search does not depend on."""


def calibration_hash(texts: Sequence[Tensor]) -> str:
    """SHA-256 of the token ids of all texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text.long().cpu().numpy().tobytes())
    return digest.hexdigest()


class Search:
    """Choose experts and layers of a model.

    Args:
        decoder: the model, in memory or streamed.
        texts: token ids, int64 [T] each, without padding; empty ones are skipped.
        options: `SearchOptions`; ``texts`` is the caller's to follow.
        state: where to go on; it must belong to the same texts and options.
        store: called with the state after every greedy step.
        tell: called with the part's name, steps done and steps in all.
        seed: of random experts.
        reduce, rank, world: the sum over processes, and which of how many this is. Every process has all texts and
            computes its share of the batches; lists do not depend on their number, bit for bit.

    Raises:
        CdmoeError: as `checked`; no text, or a state of another search.
    """

    def __init__(
        self,
        decoder: Decoder,
        texts: Sequence[Tensor],
        options: SearchOptions,
        *,
        state: SearchState | None = None,
        store: Callable[[SearchState], object] = lambda state: None,
        tell: Callable[[str, int, int], object] = lambda part, done, of: None,
        seed: int = 0,
        reduce: Reduce = lambda tensor: tensor,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.decoder, self.options, self.family = decoder, options, Family(decoder.model)
        self.geometry = self.family.geometry()
        self.kept = checked(options, self.family)
        if not any(len(text) for text in texts):
            raise CdmoeError("the calibration texts are empty")
        self.texts, self.device = list(texts), decoder.model.device
        self._store, self._tell, self._reduce, self._seed = store, tell, reduce, seed
        self._replacements: dict[int, nn.Module] = {}
        self.longs = batches_of(self.texts, options.text_batch)[rank::world]
        self.shorts = batches_of(self.texts, options.text_batch, options.text_tokens)[rank::world]
        lengths = [min(len(text), options.text_tokens) for text in self.texts]
        self.lengths = torch.tensor(lengths, dtype=torch.float64).to(self.device)
        span = decoder.model.get_output_embeddings().weight.shape[0] if options.distance == "js_logits" else 0
        self.distance = distance(options.distance, decoder.logits, span)
        config = {name: value for name, value in decoder.model.config.to_dict().items() if name not in ELSEWHERE}
        identity = {
            "texts": calibration_hash(self.texts),
            "model": json.loads(json.dumps(config, sort_keys=True, default=str)),
            "kept": self.kept,
            **options.model_dump(include={"mode", "experts", "draw", "weights", "distance", "text_tokens"}),
        }
        self.state = state or SearchState(identity, skipped=sum(not len(text) for text in self.texts))
        for name, value in identity.items():
            if self.state.identity.get(name) != value:
                there = self.state.identity.get(name)
                raise CdmoeError(f"the stored search is another one: its {name} is {there!r}, here it is {value!r}")

    # ---- what it leads to --------------------------------------------------------------------------------------------
    def weights(self, layer: int) -> list[float]:
        """The constants of a layer's kept experts, in their order, as the options say."""
        return self.state.weights(layer, self.options.weights == "conditional")

    def condensed(self, layer: int) -> CondensedMLP:
        """The condensed layer l."""
        return condensed_layer(self.family, layer, self.state.keep[layer], self.weights(layer))

    def chosen(self, count: int | None = None) -> dict[int, int]:
        """Decoder layer -> l of the first ``count`` layers of the order (default: P); not of block trimming."""
        places = self.family.moe_layers()
        return {places[layer]: layer for layer in self.state.order[: self.options.layers if count is None else count]}

    def entries(self, count: int | None = None) -> dict[int, dict[str, list[Any]]]:
        """What `plait_cdmoe.storage` writes of the first ``count`` layers (default: P), by decoder layer."""
        return {
            place: {"experts": list(self.state.keep[layer]), "weights": self.weights(layer)}
            for place, layer in self.chosen(count).items()
        }

    def small(self, count: int | None = None) -> Any:
        """The condensed model, its constants apart; it shares all other tensors with the original."""
        from .storage import rebuild

        layers = {place: self.condensed(layer) for place, layer in self.chosen(count).items()}
        return rebuild(self.decoder.model, layers, self.entries(count))

    def reduced(self, count: int) -> Any:
        """The model with the first ``count`` layers or blocks of the order condensed, or removed."""
        if self.options.condenses:
            return self.small(count)
        if self.options.mode == "block-trimming":
            return without_blocks(self.decoder.model, self.state.order[:count])
        return without_layers(self.decoder.model, list(self.chosen(count)))

    # ---- the search --------------------------------------------------------------------------------------------------
    def run(self) -> SearchState:
        """Everything that is not done yet; where ``replay`` names a folder, what is there in the place of it."""
        mode, state = self.options.mode, self.state
        if self.options.replay is not None:
            from .replay import replayed

            replayed(self, Path(self.options.replay))
            return state
        open_layers = any(self._wanted(layer) for layer in range(self.geometry.layers))
        if open_layers or len(state.block_similarity) < len(self.decoder):
            self._survey()
        if mode in ("layer-trimming", "block-trimming"):
            values = state.similarity if mode == "layer-trimming" else state.block_similarity
            order = most(values, self.options.layers, range(len(values)))
            state.beams = [Beam(tuple(order), tuple(values[at] for at in order))]
        else:
            self._choose_layers()
        self._store(state)
        return state

    @torch.no_grad()
    def _survey(self) -> None:
        """Gate statistics, cosines, and the experts of every layer, in one way through the model."""
        started, state, decoder = time.perf_counter(), self.state, self.decoder
        whole = all(len(text) <= self.options.text_tokens for text in self.texts)
        longs = [decoder.embed(batch) for batch in self.longs]
        shorts = longs if whole else [decoder.embed(batch) for batch in self.shorts]
        layer_at = {place: layer for layer, place in enumerate(self.family.moe_layers())}
        for place in range(len(decoder)):
            with decoder.weights.of(place):
                layer = layer_at.get(place)
                seen = [decoder.capture(place, hidden) for hidden in longs]
                if layer is not None and len(state.gates.sums) == layer:
                    self._count_gates(layer, [x for x, _, _ in seen])
                    state.similarity.append(self._cosine([(residual, output) for _, residual, output in seen]))
                after = [output for _, _, output in seen]
                if len(state.block_similarity) == place:
                    state.block_similarity.append(self._cosine(list(zip(longs, after, strict=True))))
                longs = after
                if not whole:
                    seen = [decoder.capture(place, hidden) for hidden in shorts]
                if layer is not None and self._wanted(layer):
                    self._choose_experts(layer, place, seen)
                shorts = [output for _, _, output in seen]
            state.seconds["experts"] = state.seconds.get("experts", 0.0) + time.perf_counter() - started
            started = time.perf_counter()
            self._tell("experts", place + 1, len(decoder))

    def _count_gates(self, layer: int, inputs: Sequence[Tensor]) -> None:
        count, shape = len(self.texts), (len(self.texts), self.geometry.experts)
        sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        for batch, x in zip(self.longs, inputs, strict=True):
            parts = gates_by_text(self.family, layer, x.flatten(0, -2), batch.owners(self.device), count)
            sums, counts = sums + parts[0], counts + parts[1]  # a text is in one batch: the others add zeros
        self.state.gates.add(self._reduce(sums), self._reduce(counts))
        self.state.gates.tokens = sum(map(len, self.texts))

    def _cosine(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
        """The mean over all tokens of all texts."""
        by_text = torch.zeros(len(self.texts), dtype=torch.float64, device=self.device)
        for batch, (a, b) in zip(self.longs, pairs, strict=True):
            each = cosine_similarity(a.flatten(0, -2).double(), b.flatten(0, -2).double(), dim=-1)
            by_text.index_add_(0, batch.owners(self.device), each)
        return float(in_order(self._reduce(by_text))) / sum(map(len, self.texts))

    def _wanted(self, layer: int) -> bool:
        """Whether experts of that layer have still to be chosen."""
        chosen = len(self.state.keep[layer]) if layer < len(self.state.keep) else -1
        return self.options.condenses and chosen < self.kept

    def _choose_experts(self, layer: int, place: int, seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        state, options = self.state, self.options
        if len(state.keep) == layer:
            state.keep.append([])
            state.traces.append([])
        weights = state.gates.weights(layer, conditional=options.weights == "conditional")
        candidates = [e for e, count in enumerate(state.gates.counts[layer]) if count]
        enough(candidates, self.kept, layer)
        if options.experts == "random":
            # random numbers of that layer, whatever was drawn before
            generator = torch.Generator().manual_seed(((self._seed * 1009 + layer) * 1009 + options.draw) % 2**63)
            drawn = torch.randperm(len(candidates), generator=generator)[: self.kept].tolist()
            state.keep[layer] = [candidates[i] for i in drawn]
        elif options.experts != "greedy":
            values = weights.tolist() if options.experts == "weight" else [float(n) for n in state.gates.counts[layer]]
            state.keep[layer] = most(values, self.kept, candidates)
        elif self.kept:
            scores = self._scores(layer, place, weights, seen)
            for expert, value in greedy_experts(scores, weights, self.kept, layer, state.keep[layer]):
                state.keep[layer].append(expert)
                state.traces[layer].append(value)
                self._store(state)
        self._store(state)

    def _scores(
        self, layer: int, place: int, weights: Tensor, seen: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> ExpertScores:
        captures, final = [], partial(self.decoder.final, place)
        for batch, (x, residual, output) in zip(self.shorts, seen, strict=True):
            inputs = x.flatten(0, -2)
            base = residual.flatten(0, -2) + self.family.shared(layer, inputs)
            captures.append(Capture(batch.owners(self.device), inputs, base, final(output).flatten(0, -2)))
        weights = weights.to(self.device)
        return ExpertScores(self.family, layer, captures, weights, self.lengths, self.distance, final, self._reduce)

    def _choose_layers(self) -> None:
        state, places = self.state, self.family.moe_layers()
        search = LayerSearch(
            self.decoder, places, self._replacement, self.shorts, self.lengths, self.distance, self._reduce
        )
        while len(state.order) < self.options.layers:
            started = time.perf_counter()
            state.beams = search.step(state.beams, self.options.beam)
            state.seconds["layers"] = state.seconds.get("layers", 0.0) + time.perf_counter() - started
            self._store(state)
            self._tell("layers", len(state.order), self.options.layers)

    def _replacement(self, layer: int) -> nn.Module:
        """What takes the place of layer l's MLP by the mode; kept where the model is in memory."""
        module = self._replacements.get(layer)
        if module is None:
            module = self.condensed(layer) if self.options.condenses else Nothing()
            if self.decoder.weights.resident:
                self._replacements[layer] = module
        return module


@dataclass(frozen=True)
class Condensed:
    """A condensed model, and the search that led to it."""

    model: Any
    state: SearchState


def condense(model: Any, texts: Sequence[Tensor], **options: Any) -> Condensed:
    """Search and condense a model in memory; with ``layers = 0`` it is given back as it is.

    Args:
        model: ``...ForCausalLM`` of a family in `plait_cdmoe.families.LAYOUTS`; it is not changed.
        texts: calibration texts as token ids, int64 [T] each, without padding.
        options: of `SearchOptions`: ``mode`` SR or S, ``layers``, ``kept``, and so on.

    Raises:
        CdmoeError: as `Search`; a mode that is a baseline.
    """
    chosen = SearchOptions(**options)
    if not chosen.condenses:
        raise CdmoeError(f"mode = {chosen.mode!r} condenses nothing: see plait_cdmoe.trimming")
    search = Search(Decoder(model), texts, chosen)
    state = search.run()
    return Condensed(search.small() if state.order else model, state)


def checked(options: SearchOptions, family: Family) -> int:
    """k, after comparing the options with the model.

    Raises:
        CdmoeError: more layers or experts than there are, or S without a shared expert.
    """
    geometry, blocks = family.geometry(), options.mode == "block-trimming"
    layers = len(family.model.model.layers) if blocks else geometry.layers
    if options.layers > layers:
        raise CdmoeError(
            f"layers = {options.layers} is more than the {layers} layers of the model that can be condensed"
        )
    if blocks and options.layers == layers:
        raise CdmoeError(f"layers = {options.layers} would remove every block of the model")
    kept = options.kept if options.kept is not None else geometry.per_token
    kept = kept if options.mode == "SR" else 0
    if kept > geometry.experts:
        raise CdmoeError(f"kept = {kept} is more than the {geometry.experts} experts of a layer")
    if not kept and not geometry.shared and options.condenses:
        raise CdmoeError(
            f"{family.kind} has no shared expert, so a layer without routed ones is empty: that is layer trimming "
            "(mode = 'layer-drop')"
        )
    return kept
