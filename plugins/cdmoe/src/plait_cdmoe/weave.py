"""CD-MoE in a plait run: everything up to fine-tuning happens when the model is transformed; the run then fine-tunes.

What was found is kept in the run's folder as it is found, so a run that is killed while it trains the base or searches
goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Data
from plait.declare.results import Metric
from plait.distributed.world import World
from plait.errors import BadInput
from plait.storage.files import write_text
from plait.training.evaluation import Predictions, predict
from plait.training.forward import Forward

from . import figures, storage
from .base import trained_base
from .decoder import Decoder
from .errors import CdmoeError
from .finetuning import as_control, freeze
from .measures import layer_speed, multiple_choice, parameter_bytes, perplexity, speed_of
from .options import CdmoeOptions
from .search import Search
from .state import SearchState
from .windows import by_domain, calibration

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


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
        sizes: bytes and numbers of the parameters of the original and of the model.
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
        original: Any = model.to(trainer.device)
        if not any((trainer.folder / "checkpoints").glob("*")):  # else the checkpoint has the weights
            self._train_base(trainer, original, data)
        original.eval()
        self.search = self._searched(trainer, original, calibration(data, options.texts))
        self.state = self.search.state
        self.model = self._small(original, options.layers)
        self.sizes = [(parameter_bytes(m), sum(p.numel() for p in m.parameters())) for m in (original, self.model)]
        self.before = self._measured(trainer, original, data)
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
            seed=trainer.recipe.seed,
            reduce=trainer.sum_over_ranks,
            rank=trainer.rank,
            world=trainer.world,
        )
        never = search.run().gates.never_selected()
        if never and self.options.mode == "SR":
            trainer.note(f"cdmoe: never selected on the calibration texts, and no candidates (layer, expert): {never}")
        return search

    def _small(self, original: Any, count: int) -> Any:
        """The original itself where nothing is chosen or it is the control, else `Search.reduced`."""
        untouched = self.options.control or not self.state.order[:count]
        return original if untouched else self.search.reduced(count)

    def _choose_trainable(self, original: Any) -> None:
        """Of a condensed model its condensed layers; a trimmed or unchanged one stays as it is."""
        chosen = self.search.chosen() if self.options.condenses else {}
        if not chosen:
            return
        if self.options.control:
            layers = {place: self.state.keep[layer] for place, layer in chosen.items()}
            as_control(original, layers, self.search.family.layout.shared)
        else:
            freeze(self.model)

    # ---- figures -----------------------------------------------------------------------------------------------------
    def _measured(self, trainer: Trainer, original: Any, data: Data) -> dict[str, Any]:
        """Perplexities of both models on both splits, multiple choice and speed; kept in the run's folder."""
        file = self.home / "before.json"
        if file.exists():
            stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return stored

        def cost(model: Any, part: str) -> dict[str, float]:
            way = Forward.of(
                World(trainer.device), "fp32", data.info.task, model, data.prepare, data.forward, data.readout
            )
            losses, fields = predict(way, model, getattr(data, part))
            return perplexity(losses.double(), fields.get("group"), data.names.get("group", ()))

        parts = [part for part in ("validation", "test") if len(getattr(data, part))]
        before: dict[str, Any] = {
            who: {part: cost(model, part) for part in parts}
            for who, model in (("original", original), ("condensed", self.model))
        }
        if "test" in parts and self.options.curve:
            small = (self._small(original, count) for count in range(1, self.options.layers + 1))
            whole, _ = self.sizes[0]
            before["curve"] = [[cost(model, "test")[""], parameter_bytes(model) / whole] for model in small]
        if "test" in parts and self.options.questions:
            before["original"]["choice"] = self._choices(trainer, original, data)
        if self.options.speed:
            before["speed"] = self._speeds(original)
        if trainer.writes:
            write_text(file, json.dumps(before))
        return before

    def _choices(self, trainer: Trainer, model: Any, data: Data) -> dict[str, float]:
        names = data.names.get("group", ())
        streams = {names[g] if g < len(names) else str(g): part for g, part in by_domain(data.test).items()}
        return multiple_choice(model, streams, self.options.questions, seed=trainer.recipe.seed)

    def _speeds(self, original: Any) -> dict[str, list[list[float]]]:
        """Of the original and of the condensed model under both of the CPU's experts implementations.

        Prefill, decoding, and, where experts were chosen, one layer: tokens a second.
        """
        speeds: dict[str, list[list[float]]] = {}
        models = [original] if self.model is original else [original, self.model]
        was = [model.config._experts_implementation for model in models]
        blocks = [self.search.family.block(0), self.search.condensed(0)] if self.state.keep else []
        size, width = original.get_input_embeddings().weight.shape
        for implementation in ("grouped_mm", "eager"):
            for model in models:
                model.set_experts_implementation(implementation)
            wholes = speed_of(models, size, decode=implementation == "grouped_mm")
            layers = layer_speed(blocks, width) if blocks else []
            speeds[implementation] = [[s.prefill, s.decode, *layers[at : at + 1]] for at, s in enumerate(wholes)]
        for model, name in zip(models, was, strict=True):
            model.set_experts_implementation(name)
        return speeds

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> figures.Results:
        """Of the split that is asked about."""
        clean, model = predictions["clean"], predictions.model
        part = "test" if clean.view.split is None else "validation"
        names = trainer.data.names.get("group", ())
        models = {who: self.before[who].get(part, {}) for who in ("original", "condensed")}
        models["fine-tuned"] = perplexity(clean.outputs.double(), clean.fields.get("group"), names)
        results = figures.excess(*models.values())
        if part == "validation":
            return results
        results |= figures.sizes(*self.sizes) | figures.speedups(self.before.get("speed", {}))
        results |= figures.curve(self.before.get("curve", []), models["original"], self.options.mode)
        if trainer.writes and model is not trainer.model and isinstance(model, storage.MODELS):
            note = "of logits, after save_pretrained and back"
            results["reload_difference"] = Metric(storage.reload_difference(model), "logits", "lower", note)
        if self.options.questions and len(trainer.data.test):
            original = self.before["original"].get("choice", {})
            results |= figures.accuracies(self._choices(trainer, model, trainer.data), original)
        note = "in this run; shared cores make it longer"
        results["search_seconds"] = Metric(sum(self.state.seconds.values()), "s", "lower", note)
        never = len(self.state.gates.never_selected())
        results["never_selected"] = Metric(never, "experts", "neither", "on the calibration texts; no candidates")
        results |= figures.layers(self.search) | figures.perplexities(names, models)
        return results | figures.traces(self.search)

    # ---- state -------------------------------------------------------------------------------------------------------
    def masks(self) -> tuple[Tensor, Tensor]:
        """Condensed layers [L] and kept experts [L, E], bool; a layer that is not condensed keeps all."""
        sizes = self.search.geometry
        layer_mask = torch.zeros(sizes.layers, dtype=torch.bool)
        keep_mask = torch.ones(sizes.layers, sizes.experts, dtype=torch.bool)
        if self.options.mode != "block-trimming":
            for layer in self.state.order[: self.options.layers]:
                layer_mask[layer] = True
                keep_mask[layer] = False
                keep_mask[layer, self.state.keep[layer] if layer < len(self.state.keep) else []] = True
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
