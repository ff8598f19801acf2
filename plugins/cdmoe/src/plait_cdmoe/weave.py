"""CD-MoE in a plait run: everything up to fine-tuning happens when the model is transformed; the run then fine-tunes.

What was found is kept in the run's folder as it is found, so a run that is killed while it trains the base or searches
goes on from there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from plait.data import Data, Subset
from plait.declare.results import Metric, Plot, Table
from plait.distributed.world import World
from plait.errors import BadInput
from plait.storage.files import write_text
from plait.training.evaluation import Predictions, predict
from plait.training.forward import Forward

from . import base, storage
from .decoder import Decoder, unpadded
from .errors import CdmoeError
from .finetuning import as_control, freeze
from .measures import layer_speed, multiple_choice, parameter_bytes, perplexity, retained, speed_of
from .options import CdmoeOptions
from .search import Search, SearchState

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

Results = dict[str, Metric | Table | Plot]


def shortened(options: CdmoeOptions, data: Data) -> Data:
    """Validation and test with the first ``windows`` examples of each domain."""

    def cut(split: Any) -> Any:
        if not len(split):
            return split
        groups = split.fields.get("group", torch.zeros(len(split), dtype=torch.int64))
        rows = [(groups == g).nonzero().flatten()[: options.windows] for g in groups.unique().tolist()]
        return Subset(split, torch.cat(rows).sort().values)

    return replace(data, validation=cut(data.validation), test=cut(data.test))


class Weave:
    """What the plugin finds and keeps.

    Args:
        options: the plugin's options.
        trainer: the run, its data transformed.
        model: of transformers, fresh or trained.
        data: the run's.

    Attributes:
        model: what the run trains: condensed, all but the condensed layers frozen.
        state: of the search.
        before: figures of the original and of the condensed model before fine-tuning.

    Raises:
        CdmoeError: a model without adapter, options that do not fit it.
    """

    def __init__(self, options: CdmoeOptions, trainer: Trainer, model: nn.Module, data: Data) -> None:
        self.options, self.home = options, trainer.folder / "cdmoe"
        if not hasattr(model, "generate"):
            raise CdmoeError(
                f"a {type(model).__name__} is no language model of transformers: take --model transformers"
            )
        if not len(data.validation):
            raise CdmoeError("the data has no validation split, from which the calibration texts are taken")
        original: Any = model
        self._way = (data.info.task, data.prepare, data.forward, data.readout)
        going_on = any((trainer.folder / "checkpoints").glob("*"))
        if not going_on:  # else the checkpoint has the weights
            self._train_base(trainer, original, data)
        original.to(trainer.device).eval()
        self.sizes = (parameter_bytes(original), sum(p.numel() for p in original.parameters()))
        self.search = self._searched(trainer, original, calibration(data, options.texts))
        self.state = self.search.state
        self.model = self._small(original, options.layers)
        self.before = self._figures_before(trainer, original, data)
        self.after = (parameter_bytes(self.model), sum(p.numel() for p in self.model.parameters()))
        self._choose_trainable(original)
        for name in ("export_files", "export_metadata"):
            if hasattr(original, name):
                setattr(self.model, name, getattr(original, name))
        self.model.cpu().train()

    # ---- the way to the condensed model ------------------------------------------------------------------------------
    def _train_base(self, trainer: Trainer, model: Any, data: Data) -> None:
        started = time.perf_counter()

        def tell(done: int, of: int) -> None:
            if done % 100 == 0 or done in (20, of):
                left = (time.perf_counter() - started) / done * (of - done)
                trainer.say(f"cdmoe: training the base, step {done} of {of}, about {left:.0f} s left")

        model.to(trainer.device)
        trained_base(self.options, trainer.recipe.seed, model, data, tell)

    def _searched(self, trainer: Trainer, model: Any, texts: list[Tensor]) -> Search:
        file = self.home / "search.json"

        def store(state: SearchState) -> None:
            if trainer.writes:
                write_text(file, json.dumps(state.dump()))

        search = Search(
            Decoder(model),
            texts,
            self.options,
            state=SearchState.load(file) if file.exists() else None,
            store=store,
            generator=torch.Generator().manual_seed(trainer.recipe.seed),
            reduce=trainer.sum_over_ranks if trainer.world > 1 else lambda tensor: tensor,
            rank=trainer.rank,
            world=trainer.world,
        )
        search.run()
        never = search.state.gates.never_selected()
        if never and self.options.mode == "SR":
            trainer.note(f"cdmoe: never selected on the calibration texts, and no candidates (layer, expert): {never}")
        return search

    def _small(self, original: Any, count: int) -> Any:
        """The original itself where nothing is chosen or it is the control, else `Search.reduced`."""
        untouched = self.options.control or not self.state.order[:count]
        return original if untouched else self.search.reduced(count)

    def _choose_trainable(self, original: Any) -> None:
        """Of a condensed model its condensed layers; a trimmed or unchanged one stays as it is."""
        chosen = self.state.order[: self.options.layers]
        if not chosen or self.options.mode not in ("SR", "S"):
            return
        if self.options.control:
            places = self.search.family.moe_layers()
            layers = {places[layer]: self.state.keep[layer] for layer in chosen}
            as_control(original, layers, self.search.family.layout.shared)
        else:
            freeze(self.model)

    # ---- figures -----------------------------------------------------------------------------------------------------
    def _figures_before(self, trainer: Trainer, original: Any, data: Data) -> dict[str, Any]:
        """Perplexities of both models on both splits, multiple choice and speed; kept in the run's folder."""
        file = self.home / "before.json"
        if file.exists():
            stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return stored
        figures: dict[str, Any] = {}
        for who, model in (("original", original), ("condensed", self.model)):
            parts = [part for part in ("validation", "test") if len(getattr(data, part))]
            figures[who] = {part: self._perplexity(trainer, model, data, part) for part in parts}
        if len(data.test) and self.options.curve:
            small = (self._small(original, count) for count in range(1, self.options.layers + 1))
            figures["curve"] = [
                [self._perplexity(trainer, model, data, "test")[""], parameter_bytes(model) / self.sizes[0]]
                for model in small
            ]
        if len(data.test) and self.options.questions:
            figures["original"]["choice"] = self._choices(trainer, original, data)
        if self.options.speed:
            figures["speed"] = self._speeds(original)
        if trainer.writes:
            write_text(file, json.dumps(figures))
        return figures

    def _perplexity(self, trainer: Trainer, model: Any, data: Data, part: str) -> dict[str, float]:
        way = Forward.of(World(trainer.device), "fp32", self._way[0], model, *self._way[1:])
        losses, fields = predict(way, model, getattr(data, part))
        return perplexity(losses.double(), fields.get("group"), data.names.get("group", ()))

    def _choices(self, trainer: Trainer, model: Any, data: Data) -> dict[str, float]:
        names = data.names.get("group", ())
        streams = {names[g] if g < len(names) else str(g): part for g, part in by_domain(data.test).items()}
        return multiple_choice(model, streams, self.options.questions, seed=trainer.recipe.seed)

    def _speeds(self, original: Any) -> dict[str, Any]:
        """Of the original under both of the CPU's experts implementations, and of the condensed model under each."""
        figures: dict[str, Any] = {}
        models = [original] if self.model is original else [original, self.model]
        was = [model.config._experts_implementation for model in models]
        size = original.get_input_embeddings().weight.shape[0]
        for implementation in ("grouped_mm", "eager"):
            for model in models:
                model.set_experts_implementation(implementation)
            speeds = speed_of(models, size, decode=implementation == "grouped_mm")
            figures[implementation] = [[speed.prefill, speed.decode] for speed in speeds]
            if self.state.keep:
                width = self.search.geometry.hidden
                blocks = [self.search.family.block(0), self.search.condensed(0)]
                figures[implementation] = [
                    [*both, layer]
                    for both, layer in zip(figures[implementation], layer_speed(blocks, width), strict=False)
                ]
        for model, name in zip(models, was, strict=True):
            model.set_experts_implementation(name)
        return figures

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Results:
        """Of the split that is asked about."""
        clean = predictions["clean"]
        part = "test" if clean.view.split is None else "validation"
        names = trainer.data.names.get("group", ())
        now = perplexity(clean.outputs.double(), clean.fields.get("group"), names)
        then, start = self.before["original"].get(part, {}), self.before["condensed"].get(part, {})
        figures = _excess(now, then, start)
        if part == "validation":
            return figures
        figures |= self._sizes() | self._speedups() | self._curve(then)
        if (
            trainer.writes
            and predictions.model is not trainer.model
            and isinstance(predictions.model, tuple(storage.MODELS))
        ):
            figures["reload_difference"] = Metric(
                storage.reload_difference(predictions.model),
                "logits",
                "lower",
                "of logits, after save_pretrained and back",
            )
        if self.options.questions and len(trainer.data.test):
            choice = self._choices(trainer, predictions.model, trainer.data)
            figures |= _accuracies(choice, self.before["original"].get("choice", {}))
        seconds = sum(self.state.seconds.values())
        figures["search_seconds"] = Metric(seconds, "s", "lower", "in this run; shared cores make it longer")
        never = len(self.state.gates.never_selected())
        figures["never_selected"] = Metric(never, "experts", "neither", "on the calibration texts; no candidates")
        return figures | self._tables(names, now, then, start) | self._plots(names, now, then, start)

    def _sizes(self) -> Results:
        note = "parameters, tied ones once; buffers are not counted"
        return {
            "memory_ratio": Metric(self.after[0] / self.sizes[0], "", "lower", note),
            "bytes": Metric(self.after[0], "bytes", "lower"),
            "parameters": Metric(self.after[1], "parameters", "lower", f"of {self.sizes[1]}"),
        }

    def _speedups(self) -> Results:
        figures: Results = {}
        for implementation, pairs in self.before.get("speed", {}).items():
            for at, phase in enumerate(("prefill", "decode", "layer")[: len(pairs[-1])]):
                ratio = pairs[-1][at] / pairs[0][at]
                if ratio == ratio:
                    note = (
                        f"against the original with experts {implementation}; before fine-tuning, process time on CPU"
                    )
                    figures[f"{phase}_speedup_{implementation}"] = Metric(ratio, "", "higher", note)
        return figures

    def _curve(self, then: Mapping[str, float]) -> Results:
        """Excess and memory of every number of layers, before fine-tuning."""
        points = self.before.get("curve", [])
        figures: Results = {}
        for count, (value, memory) in enumerate(points, 1):
            figures[f"excess_p{count}"] = Metric(math.log(value / then[""]), "nats", "lower")
            figures[f"memory_ratio_p{count}"] = Metric(memory, "", "lower")
        if points:
            line = ([1.0, *(m for _, m in points)], [0.0, *(math.log(v / then[""]) for v, _ in points)])
            title = "Excess before fine-tuning against memory"
            figures["curve"] = Plot(title, "parameter bytes over the original's", "nats", {self.options.mode: line})
        return figures

    def _tables(self, names: Any, now: Any, then: Any, start: Any) -> Results:
        places = self.search.family.moe_layers() if self.options.mode != "block-trimming" else list(range(10**4))
        rows: list[list[Any]] = []
        for rank, layer in enumerate(self.state.order[: self.options.layers], 1):
            kept = self.state.keep[layer] if layer < len(self.state.keep) else []
            weights = self.state.weights(layer, self.options.weights == "conditional") if kept else []
            at = self.state.distances[rank - 1] if rank <= len(self.state.distances) else None
            pairs = ", ".join(f"{e} ({w:.3f})" for e, w in zip(kept, weights, strict=True))
            rows.append([rank, layer, places[layer], pairs or "none", at])
        columns = ["domain", "original", "condensed", "fine-tuned"]
        domains = [
            [name or "all", then.get(name), start.get(name), now.get(name)] for name in ["", *names] if name in now
        ]
        measure = "cosine" if self.options.mode.endswith("trimming") else self.options.distance
        return {
            "layers": Table(
                f"Layers in the order in which they were chosen ({self.options.mode})",
                ["order", "layer", "decoder layer", "kept experts (weight)", measure],
                rows,
            ),
            "perplexities": Table("Perplexity by domain", columns, domains),
        }

    def _plots(self, names: Any, now: Any, then: Any, start: Any) -> Results:
        state, kind = self.state, self.options.distance
        plots: Results = {}
        domains = [name for name in ["", *names] if name in now]
        series = {
            label: ([name or "all" for name in domains], [values.get(name, math.nan) for name in domains])
            for label, values in (("original", then), ("condensed", start), ("fine-tuned", now))
        }
        plots["perplexity_by_domain"] = Plot("Perplexity", "domain", "perplexity", series, "bar")
        if state.distances and not self.options.mode.endswith("trimming"):
            steps = list(range(1, len(state.distances) + 1))
            plots["layer_trace"] = Plot(
                "Distance of the final states", "condensed layers", kind, {"layers": (steps, state.distances)}
            )
        traces = {f"layer {layer}": trace for layer, trace in enumerate(state.traces) if trace}
        if traces:
            plots["expert_traces"] = Plot(
                "Distance of a layer's output by kept experts",
                "kept experts",
                kind,
                {name: (list(range(1, len(trace) + 1)), trace) for name, trace in traces.items()},
            )
        return plots

    # ---- state -------------------------------------------------------------------------------------------------------
    def masks(self) -> tuple[Tensor, Tensor]:
        """Condensed layers [L] and kept experts [L, E], bool; a layer that is not condensed keeps all."""
        sizes = self.search.geometry
        layer_mask = torch.zeros(sizes.layers, dtype=torch.bool)
        keep_mask = torch.ones(sizes.layers, sizes.experts, dtype=torch.bool)
        if self.options.mode == "block-trimming":
            return layer_mask, keep_mask
        for layer in self.state.order[: self.options.layers]:
            layer_mask[layer] = True
            keep_mask[layer] = False
            if layer < len(self.state.keep):
                keep_mask[layer, self.state.keep[layer]] = True
        return layer_mask, keep_mask

    def state_dict(self) -> dict[str, Any]:
        """Masks and the search."""
        layer_mask, keep_mask = self.masks()
        lists = {**self.state.dump(), "seconds": {}}  # equal runs have equal states
        return {"layer_mask": layer_mask, "keep_mask": keep_mask, "search": json.dumps(lists)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was found before must be what was found now: the checkpoint's weights are of those layers and experts.

        Raises:
            BadInput: it is not.
        """
        for mine, name in zip(self.masks(), ("layer_mask", "keep_mask"), strict=True):
            if not torch.equal(mine, state[name].cpu()):
                raise BadInput("the checkpoint was made with other layers or experts than this run has found")


def trained_base(
    options: CdmoeOptions,
    seed: int,
    model: Any,
    data: Data,
    tell: Callable[[int, int], object] = lambda done, of: None,
) -> None:
    """Train a fresh model on the run's training texts, or take it from the cache; nothing where ``base_steps`` is 0.

    Raises:
        CdmoeError: training texts that are no windows of one length.
    """
    if not options.base_steps:
        return
    train: Any = data.train
    if not getattr(train, "even", False):
        raise CdmoeError("base_steps trains on windows of one length; else give a trained model and base_steps = 0")
    recipe = {
        "steps": options.base_steps,
        "batch": options.base_batch,
        "lr": options.base_lr,
        "shares": list(options.domain_shares),
        "seed": seed,
    }
    windows = train.tokens.view(len(train), -1)
    cache = user_cache_path("plait", appauthor=False) / "cdmoe"
    base.cached(model, windows, train.fields["group"], recipe, f"{train.fingerprint}", cache, tell)


def calibration(data: Data, count: int) -> list[Tensor]:
    """``count`` texts of the validation split, of every domain as many, evenly spaced; in the split's order.

    Raises:
        BadInput: batches without tokens.
    """
    split: Any = data.validation
    groups = split.fields.get("group", torch.zeros(len(split), dtype=torch.int64))
    domains = groups.unique().tolist()
    rows: list[int] = []
    for number, domain in enumerate(domains):
        inside = (groups == domain).nonzero().flatten()
        wanted = min(len(inside), count // len(domains) + (number < count % len(domains)))
        if wanted:
            rows += inside[torch.linspace(0, len(inside) - 1, wanted).long()].tolist()
    batch = split.__getitems__(sorted(rows))
    return unpadded(batch["input"], batch.get("attention_mask"))


def by_domain(split: Any) -> dict[int, Tensor]:
    """The tokens of each domain in a row."""
    batch = split.__getitems__(torch.arange(len(split)))
    texts = unpadded(batch["input"], batch.get("attention_mask"))
    groups = batch["group"].tolist() if "group" in batch else [0] * len(texts)
    return {g: torch.cat([t for t, own in zip(texts, groups, strict=True) if own == g]) for g in sorted(set(groups))}


def _excess(now: Mapping[str, float], then: Mapping[str, float], start: Mapping[str, float]) -> Results:
    """How much worse than the original, nats a token, and how much of that fine-tuning took back."""
    if "" not in then:
        return {}
    figures: Results = {
        "perplexity": Metric(now[""], "", "lower"),
        "perplexity_original": Metric(then[""], "", "lower"),
    }
    excess, first = math.log(now[""] / then[""]), math.log(start[""] / then[""])
    figures["excess"] = Metric(excess, "nats", "lower", "ln of perplexity over the original's")
    figures["excess_before"] = Metric(first, "nats", "lower", "the same before fine-tuning")
    share = 100 * (1 - excess / first) if first > 0 else math.nan
    note = "of the excess, by fine-tuning" if first > 0 else "undefined: there was no excess"
    figures["recovered"] = Metric(share, "%", "higher", note)
    return figures


def _accuracies(now: Mapping[str, float], then: Mapping[str, float]) -> Results:
    figures: Results = {}
    for name, value in now.items():
        figures[f"choice_accuracy{'_' + name if name else ''}"] = Metric(value, "%", "higher", "chance is 25 %")
    if "" in now and "" in then:
        figures["choice_accuracy_original"] = Metric(then[""], "%", "higher")
        share, above = retained(now[""], then[""]), retained(now[""], then[""], 25.0)
        figures["retained"] = Metric(100 * share, "%", "higher", "of the original's multiple-choice accuracy")
        undefined = "undefined: the original is at chance" if above != above else "of what it has above chance"
        figures["retained_above_chance"] = Metric(100 * above, "%", "higher", undefined)
    return figures
