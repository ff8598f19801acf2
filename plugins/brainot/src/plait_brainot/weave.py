"""The method woven into a plait run: the loss over the core's passes, masked views, captions at evaluation."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.data import Batch
from plait.declare.results import Metric, Plot, Table
from plait.storage.files import write_text
from plait.training.evaluation import Predictions, View

from . import figures
from .alignment import Aligned, Discriminator, align
from .captioner import Captioner, fitted
from .errors import BrainotError
from .masking import Kept, analysis, needed, pair_of, shapley
from .options import BrainotOptions
from .ridge import ridge
from .transport import Plan

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

KEPT = "brainot.kept"
"""The tag of a view that keeps some regions of the brain: which."""


class Weave:
    """What the plugin keeps during a run.

    Args:
        options: the plugin's options.
        trainer: the run.

    Raises:
        BrainotError: a language model that cannot be used, pairs of regions that are not there, a jsd without a fixed
            width of tokens.
    """

    def __init__(self, options: BrainotOptions, trainer: Trainer) -> None:
        self.options = options
        extra = trainer.info.extra
        self.facts = figures.Facts.of(extra)
        self.regions: Mapping[int, Mapping[str, Any]] = extra.get("regions", {})
        self.discriminator: Discriminator | None = None
        if options.align == "jsd":
            if "tokens" not in extra:
                raise BrainotError("align = 'jsd' must know the width of a token: info.extra needs tokens (M, D)")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(trainer.generator("brainot.discriminator").initial_seed())
                self.discriminator = Discriminator(extra["tokens"][1])
            trainer.add_module("brainot.discriminator", self.discriminator)
        if options.masking != "none" and not self.regions:
            raise BrainotError(
                f"masking = {options.masking!r}: the data name no regions of the brain; set masking = 'none'"
            )
        if options.masking == "pairs":
            for pair in options.pairs:
                pair_of(pair, self._names())
        self.captioner: Captioner | None = None
        if self.facts is not None:
            train: Any = trainer.data.train
            if "scene" not in train.fields:
                raise BrainotError(
                    "the data bring captions, and their samples no field 'scene' that says whose they are"
                )
            if len(train) < (batch := trainer.recipe.train.batch_size):
                raise BrainotError(f"train.batch_size = {batch}: the training split has {len(train)} samples")
            rows, known = train.fields["scene"].unique(), str(train.fingerprint)
            captioner = fitted(train.tokens, self.facts.captions, rows, known, options, trainer.say)
            self.captioner = captioner.to(trainer.device)
        self._plans: tuple[int, dict[bytes, Plan]] = (0, {})
        self._seconds, self._solved = 0.0, 0

    def _names(self) -> list[str]:
        return list(next(iter(self.regions.values()))) if self.regions else []

    # ---- training -----------------------------------------------------------------------------------------------
    def mass(self, trainer: Trainer) -> float:
        """m of the present step, by the schedule."""
        if self.options.m_schedule == "constant":
            return self.options.m
        done = max(trainer.step - 1, 0) / max(trainer.total_steps - 1, 1)
        return 1 + (self.options.m - 1) * min(done, 1.0)

    def objective(self, trainer: Trainer, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of each example [B] by the chosen alignment."""
        began = time.perf_counter()
        training = torch.is_grad_enabled()
        key = batch["index"].cpu().numpy().tobytes() if self.options.plan_reuse and training else b""
        if self._plans[0] != trainer.step:
            self._plans = (trainer.step, {})
        known = self._plans[1].get(key) if key else None
        brain, image, m = outputs.float(), batch["target"].float(), self.mass(trainer)
        if training and not bool(brain.isfinite().all() & image.isfinite().all()):
            return brain.flatten(1).sum(1) * torch.nan  # the run names the step, and stops
        with torch.autocast(trainer.device.type, enabled=False):
            aligned = align(brain, image, self.options, m=m, plan=known, discriminator=self.discriminator)
        if key and aligned.plan is not None:
            self._plans[1][key] = aligned.plan
        if training:
            self._seconds += time.perf_counter() - began
            self._solved += 1
            self._tell(trainer, aligned)
        return aligned.loss

    def _tell(self, trainer: Trainer, aligned: Aligned) -> None:
        if aligned.info and trainer.step % trainer.recipe.train.log_every == 0:
            trainer.log({f"brainot/{name}": value for name, value in aligned.info.items()})
        if (moved := aligned.info.get("violation", 0.0)) > self.options.tolerance and trainer.step > 0:
            trainer.note(
                f"brainot: plans do not converge within {self.options.sweeps} sweeps: the last one of step "
                f"{trainer.step} moved {moved:.1e} of the mass; raise brainot.sweeps or brainot.eps_share"
            )

    # ---- evaluation ---------------------------------------------------------------------------------------------
    def views(self, trainer: Trainer) -> dict[str, View]:
        """The test brains with some of their regions left out."""
        if self.options.masking == "none":
            return {}
        names = self._names()
        given = {}
        for kept in needed(names, self.options.pairs, self.options.masking):
            if kept == frozenset(names):
                continue
            shown = "+".join(name for name in names if name in kept) or "nothing"
            hide = _Hidden(self.regions, kept, self.options.mask_mode, trainer.data.test)
            given[f"brain:{shown}"] = View(f"only {shown} of the brain", hide, tags={KEPT: kept})
        return given

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """Captions and their scores, how close the tokens are, retrieval; on the test also the masked brains."""
        clean = predictions["clean"]
        rows = min(self.options.caption_rows, len(clean.outputs))
        brain, image = clean.outputs[:rows], clean.fields["target"][:rows].float()
        given = figures.closeness(brain, image, self.options) | figures.retrieval(brain, image)
        if self._solved:
            spent = 1000 * self._seconds / self._solved
            given["alignment_time"] = Metric(spent, "ms", "lower", "of a pass in training")
        whole = trainer.step > 0 and predictions.model is trainer.model and clean.view.split is None
        if self.facts is None or self.captioner is None or "scene" not in clean.fields:
            return given
        scene = clean.fields["scene"][:rows]
        said = {"brain": self._captions(brain), "true": self._captions(image)}
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()
        said["shuffled"] = [said["brain"][row] for row in order]
        mean = image.mean((0, 1), keepdim=True).expand(1, image.shape[1], -1)
        said["mean"] = self._captions(mean) * rows
        if self.options.ridge:
            said["ridge"] = self._captions(self._ridge(trainer, clean.view.split, rows))
        given |= figures.captioned(said, scene, self.facts, self.options.resamples)
        if whole:
            given |= figures.pictures(brain, image, trainer.info.extra, scene, said["brain"])
        if whole and trainer.writes:
            for name, of in (("captions", said["brain"]), ("references", self.facts.references(scene))):
                numbered = {str(row): text for row, text in enumerate(of)}
                write_text(trainer.folder / f"brainot-{name}.json", json.dumps(numbered, indent=1))
            figures.save_maps(trainer.folder / "brainot-maps", brain, image, self.options)
            if picture := trainer.info.extra.get("picture"):
                shown = [picture(number) for number in scene[: figures.SHOWN].tolist()]
                figures.save_pictures(trainer.folder / "brainot-pictures.png", shown, said["brain"][: len(shown)])
        if any(KEPT in view.tags for view in predictions.views.values()) and rows > 1:
            given |= self._masked(predictions, scene, said["brain"])
        return given

    def _ridge(self, trainer: Trainer, split: Any, rows: int) -> Tensor:
        """Tokens of the first rows of a split by ridge regression on the training split."""
        judged = trainer.data.test if split is None else split
        splits = (trainer.data.train, trainer.data.validation, judged)
        counts = (len(splits[0]), len(splits[1]), rows)
        whole = [s.__getitems__(torch.arange(n)) for s, n in zip(splits, counts, strict=True)]
        (x, y), (x_validation, y_validation), (x_test, _) = ((b["input"], b["target"]) for b in whole)
        return ridge(x, y, x_validation, y_validation, x_test)

    def _captions(self, tokens: Tensor) -> list[str]:
        assert self.captioner is not None
        return self.captioner.captions(tokens, self.options.max_new_tokens)

    def _masked(self, predictions: Predictions, scene: Tensor, said: list[str]) -> dict[str, Metric | Table | Plot]:
        assert self.facts is not None
        names = self._names()
        captions = {frozenset(names): said}
        for name, view in predictions.tagged(KEPT).items():
            captions[view.tags[KEPT]] = self._captions(predictions[name].outputs[: len(scene)])
        pairs = [p for p in self.options.pairs if frozenset(p.split("+")) in captions]
        given: dict[str, Metric | Table | Plot] = {}
        for kind in self.facts.kinds(len(scene)):
            scores = {kept: figures.samples_of(kind, of, scene, self.facts) for kept, of in captions.items()}
            score = functools.partial(figures.total, kind)
            given |= figures.contrasts(analysis(names, pairs, scores, score, self.options.resamples), kind)
            if self.options.masking == "shapley":
                shares = shapley(names, lambda kept, scores=scores, score=score: score(scores[kept]))  # type: ignore[misc]
                for name, (value, error) in shares.items():
                    note = f"s.e. {error:.2f}" if error else "exact"
                    given[f"shapley_{name}_{kind}"] = Metric(value, "points", "neither", note)
        return given

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Which captioner judges the run."""
        return {"captioner": "" if self.captioner is None else self.captioner.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            BrainotError: another captioner, so that figures would not be of one run.
        """
        own = self.state_dict()["captioner"]
        if state["captioner"] != own:
            raise BrainotError(
                f"the run was begun with the captioner {state['captioner'][:12] or 'none'}, and this is "
                f"{own[:12] or 'none'}: keep brainot.lm and the captioner's options, or begin a new run"
            )


class _Hidden:
    """The transform of a view: voxels of the regions that are not kept are 0, or another test sample's.

    Args:
        regions: subject -> region -> its voxels.
        kept: regions that stay.
        mode: ``zero`` or ``shuffle``.
        split: the test split, of which a sample's donor is taken.
    """

    def __init__(self, regions: Mapping[int, Mapping[str, Any]], kept: Kept, mode: str, split: Any) -> None:
        self.mode, self.split = mode, split
        self.hidden = {
            subject: torch.cat(
                [torch.as_tensor(v) for name, v in of.items() if name not in kept] or [torch.empty(0)]
            ).long()
            for subject, of in regions.items()
        }
        generator = torch.Generator().manual_seed(0)
        self.donor = torch.randperm(len(split), generator=generator) if mode == "shuffle" else None

    def __call__(self, batch: Batch) -> Batch:
        x = batch["input"].clone()
        given = torch.zeros_like(x)
        if self.donor is not None:
            given = self.split.__getitems__(self.donor[batch["index"]])["input"]
        for subject, voxels in self.hidden.items():
            own = batch["subject"] == subject if "subject" in batch else torch.ones(len(x), dtype=torch.bool)
            rows = own.nonzero()
            x[rows, voxels] = given[rows, voxels]
        return Batch({**batch, "input": x})
