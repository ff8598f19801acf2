"""The whole search, with a state that can be stored at any point: gate statistics, experts of every layer, layers.

The state is plain JSON. A search that goes on from a stored state ends with the lists of one that was not interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from plait.errors import first_line

from .condensed import CondensedMLP, condensed_layer
from .decoder import Decoder, TextBatch, batches_of
from .distance import distance
from .errors import CdmoeError
from .experts import Capture, ExpertScores, Reduce, enough, greedy_experts
from .families import Family
from .gates import GateStats, gates_by_text, most
from .layers import Beam, LayerSearch
from .options import SearchOptions
from .trimming import Nothing, without_blocks, without_layers

__all__ = ["Condensed", "Search", "SearchState", "calibration_hash", "condense"]


@dataclass
class SearchState:
    """Everything a search has found so far; layers are mixture-of-experts layers, counted from 0.

    Attributes:
        identity: what it belongs to: calibration texts and the options that matter.
        gates: statistics of the layers surveyed so far.
        keep: of each layer the kept experts in their order, and the distance after each one.
        similarity: mean cosine between the residual stream and itself plus the layer's output (layer trimming).
        block_similarity: of each decoder layer between its input and its output (block trimming).
        beams: ways to choose layers, the best first.
        seconds: spent in each part.
        skipped: empty texts, left out.
    """

    identity: dict[str, Any]
    gates: GateStats = field(default_factory=GateStats)
    keep: list[list[int]] = field(default_factory=list)
    traces: list[list[float]] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    block_similarity: list[float] = field(default_factory=list)
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    VERSION: ClassVar[int] = 1

    @property
    def order(self) -> list[int]:
        """Layers in the order in which they were chosen."""
        return list(self.beams[0].order)

    @property
    def distances(self) -> list[float]:
        """Distance of the final states after each of them."""
        return list(self.beams[0].distances)

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it; numbers come back as they were."""
        return {"version": self.VERSION, **asdict(self)}

    @classmethod
    def read(cls, stored: Any, where: str) -> SearchState:
        """The state from `dump`.

        Raises:
            CdmoeError: it is no state of a search, or of another release.
        """
        try:
            if stored["version"] != cls.VERSION:
                raise CdmoeError(f"{where}: a search of another release (format {stored['version']}); begin anew")
            values = {entry.name: stored[entry.name] for entry in fields(cls)}
            values["gates"] = GateStats(**values["gates"])
            values["beams"] = [Beam(tuple(b["order"]), tuple(b["distances"])) for b in values["beams"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CdmoeError(f"{where}: this is no state of a search") from error

    @classmethod
    def load(cls, file: Path) -> SearchState:
        """The state that was stored as JSON.

        Raises:
            CdmoeError: the file cannot be read, or as `read`.
        """
        try:
            return cls.read(json.loads(file.read_text(encoding="utf-8")), str(file))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CdmoeError(f"{file} cannot be read: {first_line(error)}") from error

    def weights(self, layer: int, conditional: bool = True) -> list[float]:
        """w of the kept experts of a layer, in their order."""
        every = self.gates.weights(layer, conditional=conditional)
        return every[self.keep[layer]].tolist()


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
        generator: of random experts.
        reduce, rank, world: the sum over processes, and which of how many this is. Every process has all texts and
            computes its share of the batches; lists do not depend on their number, bit for bit.

    Raises:
        CdmoeError: see the attributes of `SearchOptions`; a state of another search.
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
        generator: torch.Generator | None = None,
        reduce: Reduce = lambda tensor: tensor,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.decoder, self.options = decoder, options
        self.family = Family(decoder.model)
        self.geometry = self.family.geometry()
        self.kept = checked(options, self.family)
        if not any(len(text) for text in texts):
            raise CdmoeError("the calibration texts are empty")
        self.texts = list(texts)
        self._store, self._tell, self._reduce = store, tell, reduce
        self._generator = generator or torch.Generator().manual_seed(0)
        self.longs = batches_of(self.texts, options.text_batch)[rank::world]
        self.shorts = batches_of(self.texts, options.text_batch, options.text_tokens)[rank::world]
        self.lengths = torch.tensor([min(len(t), options.text_tokens) for t in self.texts], dtype=torch.float64)
        self.lengths = self.lengths.to(decoder.model.device)
        span = decoder.model.get_output_embeddings().weight.shape[0] if options.distance == "js_logits" else 0
        self.distance = distance(options.distance, decoder.logits, span)
        matters = {
            "kept": self.kept,
            **options.model_dump(include={"mode", "experts", "draw", "weights", "distance", "text_tokens"}),
        }
        identity = {"texts": calibration_hash(self.texts), "model": self._model_identity(), **matters}
        self.state = state or SearchState(identity, skipped=sum(not len(text) for text in self.texts))
        for name, value in identity.items():
            if self.state.identity.get(name) != value:
                there = self.state.identity.get(name)
                raise CdmoeError(f"the stored search is another one: its {name} is {there!r}, here it is {value!r}")

    def _model_identity(self) -> dict[str, Any]:
        config = self.decoder.model.config.to_dict()
        leave = {
            "dtype",
            "torch_dtype",
            "transformers_version",
            "_name_or_path",
            "architectures",
            "experts_implementation",
        }
        kept = {name: value for name, value in config.items() if name not in leave}
        identity: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True, default=str))
        return identity

    @cached_property
    def modules(self) -> dict[int, nn.Module]:
        """What takes the place of each layer's MLP, kept where the model is in memory."""
        return {}

    def replacement(self, layer: int) -> nn.Module:
        """What takes the place of layer l's MLP by the mode; its experts must be chosen."""
        if layer not in self.modules:
            module = Nothing() if self.options.mode == "layer-drop" else self.condensed(layer)
            if not self.decoder.weights.resident:
                return module
            self.modules[layer] = module
        return self.modules[layer]

    def condensed(self, layer: int) -> CondensedMLP:
        """The condensed layer l."""
        kept = self.state.keep[layer]
        weights = self.state.weights(layer, self.options.weights == "conditional")
        return condensed_layer(self.family, layer, kept, weights)

    def entries(self, count: int | None = None) -> dict[int, dict[str, list[Any]]]:
        """What `plait_cdmoe.storage` writes of the first ``count`` layers (default: P), by decoder layer."""
        places, state = self.family.moe_layers(), self.state
        conditional = self.options.weights == "conditional"
        return {
            places[layer]: {"experts": list(state.keep[layer]), "weights": state.weights(layer, conditional)}
            for layer in state.order[: self.options.layers if count is None else count]
        }

    def small(self, count: int | None = None) -> Any:
        """The condensed model, its constants apart; it shares all other tensors with the original."""
        from .storage import rebuild

        entries = self.entries(count)
        layers = {place: layer for layer, place in enumerate(self.family.moe_layers())}
        return rebuild(self.decoder.model, {place: self.condensed(layers[place]) for place in entries}, entries)

    def reduced(self, count: int) -> Any:
        """The model with the first ``count`` layers or blocks of the order condensed, or removed."""
        chosen, mode = self.state.order[:count], self.options.mode
        if mode == "block-trimming":
            return without_blocks(self.decoder.model, chosen)
        if mode in ("layer-drop", "layer-trimming"):
            places = self.family.moe_layers()
            return without_layers(self.decoder.model, [places[layer] for layer in chosen])
        return self.small(count)

    def run(self) -> SearchState:
        """Everything that is not done yet; where ``replay`` names a folder, what is there in the place of it."""
        if self.options.replay is not None:
            from .replay import replayed

            replayed(self, Path(self.options.replay))
            return self.state
        open_layers = any(self._wanted(layer) for layer in range(self.geometry.layers))
        if open_layers or len(self.state.block_similarity) < len(self.decoder):
            self._survey()
        mode, state = self.options.mode, self.state
        if mode == "layer-trimming":
            chosen = most(state.similarity, self.options.layers, range(self.geometry.layers))
            state.beams = [Beam(tuple(chosen), tuple(state.similarity[at] for at in chosen))]
        elif mode == "block-trimming":
            chosen = most(state.block_similarity, self.options.layers, range(len(self.decoder)))
            state.beams = [Beam(tuple(chosen), tuple(state.block_similarity[at] for at in chosen))]
        else:
            self._choose_layers()
        self._store(state)
        return state

    @torch.no_grad()
    def _survey(self) -> None:
        """Gate statistics, cosines, and the experts of every layer, in one way through the model."""
        started, state = time.perf_counter(), self.state
        whole = all(len(text) <= self.options.text_tokens for text in self.texts)
        longs = [self.decoder.embed(batch) for batch in self.longs]
        shorts = longs if whole else [self.decoder.embed(batch) for batch in self.shorts]
        layer_at = {place: layer for layer, place in enumerate(self.family.moe_layers())}
        for place in range(len(self.decoder)):
            with self.decoder.weights.of(place):
                layer = layer_at.get(place)
                if layer is None:
                    after = [self.decoder.run(place, hidden) for hidden in longs]
                    self._note_block(place, longs, after)
                    longs, shorts = after, after if whole else [self.decoder.run(place, hidden) for hidden in shorts]
                    continue
                seen = [self.decoder.capture(place, hidden) for hidden in longs]
                after = [output for _, _, output in seen]
                if len(state.gates.sums) == layer:
                    self._note_layer(layer, seen)
                self._note_block(place, longs, after)
                longs = after
                if not whole:
                    seen = [self.decoder.capture(place, hidden) for hidden in shorts]
                if self._wanted(layer):
                    self._choose_experts(layer, place, seen)
                shorts = [output for _, _, output in seen]
            state.seconds["experts"] = state.seconds.get("experts", 0.0) + time.perf_counter() - started
            started = time.perf_counter()
            self._tell("experts", place + 1, len(self.decoder))

    def _note_layer(self, layer: int, seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Statistics of a layer: gates, and how little the layer turns the residual stream."""
        count, state = len(self.texts), self.state
        device = self.lengths.device
        sums = torch.zeros(count, self.geometry.experts, dtype=torch.float64, device=device)
        counts = torch.zeros(count, self.geometry.experts, dtype=torch.int64, device=device)
        for batch, (x, _, _) in zip(self.longs, seen, strict=True):
            parts = gates_by_text(self.family, layer, x.flatten(0, -2), _owners(batch, device), count)
            sums, counts = sums + parts[0], counts + parts[1]  # a text is in one batch: the others add zeros
        state.gates.add(self._reduce(sums), self._reduce(counts))
        state.gates.tokens = sum(len(text) for text in self.texts)
        cosines = [(residual.flatten(0, -2), output.flatten(0, -2)) for _, residual, output in seen]
        state.similarity.append(self._mean_cosine(cosines))

    def _note_block(self, place: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        if len(self.state.block_similarity) == place:
            pairs = [(a.flatten(0, -2), b.flatten(0, -2)) for a, b in zip(before, after, strict=True)]
            self.state.block_similarity.append(self._mean_cosine(pairs))

    def _mean_cosine(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Over all tokens of all texts."""
        by_text = torch.zeros(len(self.texts), dtype=torch.float64, device=self.lengths.device)
        for batch, (a, b) in zip(self.longs, pairs, strict=True):
            by_text.index_add_(0, _owners(batch, by_text.device), cosine_similarity(a.double(), b.double(), dim=-1))
        total = self._reduce(by_text).cumsum(0)[-1]
        return float(total) / sum(len(text) for text in self.texts)

    def _wanted(self, layer: int) -> bool:
        """Whether experts of that layer have still to be chosen."""
        trimmed = self.options.mode in ("layer-drop", "layer-trimming", "block-trimming")
        chosen = len(self.state.keep[layer]) if layer < len(self.state.keep) else -1
        return not trimmed and chosen < self.kept

    def _choose_experts(self, layer: int, place: int, seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        state, options = self.state, self.options
        if len(state.keep) == layer:
            state.keep.append([])
            state.traces.append([])
        weights = state.gates.weights(layer, conditional=options.weights == "conditional")
        candidates = [e for e, count in enumerate(state.gates.counts[layer]) if count]
        enough(candidates, self.kept, layer)
        if options.experts == "random":
            drawn = torch.randperm(len(candidates), generator=self._generator_of(layer))[: self.kept].tolist()
            state.keep[layer] = [candidates[i] for i in drawn]
        elif options.experts != "greedy":
            values = weights.tolist() if options.experts == "weight" else [float(n) for n in state.gates.counts[layer]]
            state.keep[layer] = most(values, self.kept, candidates)
        elif self.kept:
            device = self.lengths.device
            captures = [
                Capture(
                    _owners(batch, device),
                    x.flatten(0, -2),
                    (residual.flatten(0, -2) + self.family.shared(layer, x.flatten(0, -2))),
                    self.decoder.final(place, output).flatten(0, -2),
                )
                for batch, (x, residual, output) in zip(self.shorts, seen, strict=True)
            ]
            score = ExpertScores(
                self.family,
                layer,
                captures,
                weights.to(device),
                self.lengths,
                self.distance,
                lambda states: self.decoder.final(place, states),
                self._reduce,
            )
            for expert, value in greedy_experts(score, weights, self.kept, layer, state.keep[layer]):
                state.keep[layer].append(expert)
                state.traces[layer].append(value)
                self._store(state)
        self._store(state)

    def _generator_of(self, layer: int) -> torch.Generator:
        """Random numbers of that layer, whatever was drawn before."""
        seed = (self._generator.initial_seed() * 1009 + layer) * 1009 + self.options.draw
        return torch.Generator().manual_seed(seed % 2**63)

    def _choose_layers(self) -> None:
        search = LayerSearch(
            self.decoder,
            self.family.moe_layers(),
            self.replacement,
            self.shorts,
            self.lengths,
            self.distance,
            self._reduce,
        )
        while len(self.state.order) < self.options.layers:
            started = time.perf_counter()
            self.state.beams = search.step(self.state.beams, self.options.beam)
            self.state.seconds["layers"] = self.state.seconds.get("layers", 0.0) + time.perf_counter() - started
            self._store(self.state)
            self._tell("layers", len(self.state.order), self.options.layers)


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
    if chosen.mode not in ("SR", "S"):
        raise CdmoeError(f"mode = {chosen.mode!r} condenses nothing: see plait_cdmoe.trimming")
    search = Search(Decoder(model), texts, chosen)
    state = search.run()
    return Condensed(search.small() if state.order else model, state)


def checked(options: SearchOptions, family: Family) -> int:
    """k, after comparing the options with the model.

    Raises:
        CdmoeError: more layers or experts than there are, or S without a shared expert.
    """
    geometry = family.geometry()
    layers = len(family.model.model.layers) if options.mode == "block-trimming" else geometry.layers
    if options.layers > layers:
        raise CdmoeError(
            f"layers = {options.layers} is more than the {layers} layers of the model that can be condensed"
        )
    if options.mode == "block-trimming" and options.layers == layers:
        raise CdmoeError(f"layers = {options.layers} would remove every block of the model")
    kept = options.kept if options.kept is not None else geometry.per_token
    kept = kept if options.mode == "SR" else 0
    if kept > geometry.experts:
        raise CdmoeError(f"kept = {kept} is more than the {geometry.experts} experts of a layer")
    if not kept and not geometry.shared and options.mode in ("SR", "S"):
        raise CdmoeError(
            f"{family.kind} has no shared expert, so a layer without routed ones is empty: that is layer trimming "
            "(mode = 'layer-drop')"
        )
    return kept


def _owners(batch: TextBatch, device: Any) -> Tensor:
    """The text of each token of a batch, [B*T]."""
    return torch.tensor(batch.rows, device=device).repeat_interleave(batch.ids.shape[1])
