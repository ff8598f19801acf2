"""What a run of plait reports: its metrics, with the tables and pictures beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from plait.data.streams import in_order
from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import Predictions
from plait_dbadfl.metrics import Scores, evaluate, summarize
from plait_dbadfl.names import BUDGETS
from plait_dbadfl.nodes import collected
from plait_dbadfl.pictures import pictures
from plait_dbadfl.results import Result
from plait_dbadfl.tables import floor, tables, thresholds

if TYPE_CHECKING:
    from plait_dbadfl.stages import Stages
    from plait_dbadfl.weave import Weave

Figures = dict[str, Metric | Table | Plot]
EXACT_GRAPH = 4000
"""Most nodes for which diameter and mean hops are computed: they need the distance of every pair."""
SHARE = ("", "higher")


def figures(weave: Weave, predictions: Predictions) -> Figures:
    """Of the finished run; for the exported network, and on the validation split, accuracy and success alone."""
    if predictions.model is not weave.trainer.model:
        return _of_one(weave, predictions)
    clean = predictions.views["clean"]
    if clean.split is not None:
        return _on_validation(weave, predictions)
    stages = weave.stages
    if not stages.results:
        return {}
    return {
        **_main(stages, weave.clock),
        **_graph(stages),
        **_companions(stages),
        **_placements(stages),
        **_detection(stages),
        **tables(stages),
        **pictures(stages),
    }


def _share(value: float, better: str = "higher", note: str = "") -> Metric:
    return Metric(value, "", better, note)  # type: ignore[arg-type]


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _main(stages: Stages, clock: Sequence[float]) -> Figures:
    main = stages.results[-1]
    final = main.final
    seconds, rounds = clock
    return {
        "ma": _share(final.ma, note="clean accuracy, mean over benign nodes"),
        "ma_worst": _share(final.ma_worst, note="worst benign node"),
        "ma_std": _share(final.ma_std, "lower", "between benign nodes"),
        "asr": _share(final.asr, "lower", _joined("whole trigger, mean over benign nodes", stages.main.unaware)),
        "asr_p10": _share(final.asr_p10, "lower", "10th percentile of benign nodes"),
        "asr_min": _share(final.asr_min, "lower", "lowest benign node"),
        "asr_floor": _share(floor(stages), "neither", "the same figure of the run without attack"),
        "seconds_per_round": Metric(
            seconds / rounds if rounds else math.nan,
            "s",
            "lower",
            "local steps and exchanges of the main run" if rounds else "not measured: resumed after its end",
        ),
    } | _rejection(main)


def _rejection(main: Result) -> Figures:
    if main.rejection is None:
        return {}
    tpr, fpr = main.rejection
    return {
        "rejection_tpr": _share(tpr, "higher", "attackers' messages to benign nodes that were refused"),
        "rejection_fpr": _share(fpr, "lower", "benign messages that were refused"),
    }


def _graph(stages: Stages) -> Figures:
    federation = stages.federation
    metrics: Figures = {
        "spectral_gap": Metric(federation.mixing.spectral_gap(), "", "neither", "1 - |lambda_2(W)|"),
    }
    if federation.topology.n <= EXACT_GRAPH:
        metrics["diameter"] = Metric(federation.topology.diameter, "hops", "neither")
        metrics["mean_hops"] = Metric(federation.topology.mean_hops, "hops", "neither")
    return metrics


def _companions(stages: Stages) -> Figures:
    metrics: Figures = {}
    for item, result in zip(stages.runs[:-1], stages.results[:-1], strict=False):
        metrics[f"ma_{item.slug}"] = _share(result.final.ma, note=item.text)
        metrics[f"asr_{item.slug}"] = _share(result.final.asr, "lower", _joined(item.text, item.unaware))
    return metrics


def _placements(stages: Stages) -> Figures:
    """Largest less smallest success of one arm over the placements that were run, for each budget."""
    options = stages.options
    metrics: Figures = {}
    for budget in BUDGETS:
        by_arm: dict[str, dict[str, float]] = {}
        for item, result in zip(stages.runs, stages.results, strict=True):
            plain = item.arm != "none" and item.defence is None and item.change is None
            if plain and (item.budget or options.budget) == budget:
                by_arm.setdefault(item.arm, {})[item.placement or options.placement] = result.final.asr
        for arm, success in by_arm.items():
            if len(success) > 1:
                name = f"placement_range_{arm}_{budget}".replace("-", "_")
                spread = max(success.values()) - min(success.values())
                metrics[name] = _share(spread, "neither", f"ASR over placements {', '.join(success)}")
    return metrics


def _detection(stages: Stages) -> Figures:
    detection = stages.detection
    if detection is None:
        return {}
    scores = detection.scores
    lstm, median = scores["lstm"], scores["median"]
    shown: Figures = {
        "hops_mae": Metric(lstm.mae, "hops", "lower"),
        "hops_mae_constant": Metric(median.mae, "hops", "neither", "always the median of the shadows"),
        "hops_mae_ratio": _ratio(lstm.mae, median.mae, "below 1 is better than a constant"),
        "hops_spearman": _maybe(lstm.spearman, "rank correlation"),
        "hops_within_one": _share(lstm.within_one, note="pairs off by at most one hop"),
        "near_auc": _maybe(lstm.auc, f"of d <= {stages.federation.options.threshold(detection.median):g}"),
    }
    if "shuffled" in scores:
        shown["hops_mae_ratio_shuffled"] = _ratio(
            scores["shuffled"].mae, median.mae, "trained on shuffled distances: must not learn"
        )
    clustered = next((r for r in reversed(stages.results) if r.arm == "clusters-predicted"), None)
    if clustered is not None and clustered.ari is not None:
        shown["clusters_ari"] = _share(clustered.ari, note="with the clusters of the true distances")
    rows = [
        [name, s.mae, s.mae / median.mae if median.mae else None, s.spearman, 100 * s.within_one, s.auc, s.pairs]
        for name, s in scores.items()
    ]
    columns = ["predictor", "MAE hops", "over constant", "Spearman", "within 1 hop %", "AUC near", "pairs"]
    shown["detection"] = Table("Predicted hop distances between attackers", columns, rows)
    shown["tau"] = thresholds(stages)
    return shown


def _ratio(value: float, over: float, note: str) -> Metric:
    return Metric(value / over, "", "lower", note) if over else Metric(math.nan, "", "lower", "all distances are equal")


def _maybe(value: float, note: str) -> Metric:
    return Metric(value, "", "higher", "undefined: all pairs alike" if math.isnan(value) else note)


# ---- other splits, other models ----------------------------------------------------------------------------------
def _on_validation(weave: Weave, predictions: Predictions) -> Figures:
    """Accuracy and success of the main run's nodes on the validation split, to choose a defence by."""
    split = predictions.views["clean"].split
    assert split is not None
    predictions["clean"]
    if weave.present is None:
        return {}
    fields, forward = collected(split), weave.present.training.forward
    scores = _scores(weave, fields, lambda images: forward(images.to(weave.trainer.device)))
    if scores is None:
        return {}
    main = summarize(scores, weave.stages.federation.benign)
    return {"ma": _share(main.ma), "asr": _share(main.asr, "lower"), "ma_minus_asr": _share(main.ma - main.asr)}


def _scores(weave: Weave, fields: Mapping[str, Any], forward: Any, nodes: int = 0) -> Scores | None:
    federation = weave.stages.federation
    trigger, target = federation.trigger, federation.options.target
    assert trigger is not None
    if not bool((fields["label"] != target).any()):
        return None
    return evaluate(
        forward,
        fields["input"],
        fields["label"],
        nodes or weave.options.nodes,
        target=target,
        trigger=trigger.mask,
        value=trigger.value,
    )


def _of_one(weave: Weave, predictions: Predictions) -> Figures:
    """The exported network: one mean model."""
    predictions["clean"]
    model, device = predictions.model, weave.trainer.device
    split = weave.trainer.data.test
    batches = list(in_order(split, 1024))
    fields = {name: torch.cat([batch[name] for batch in batches]) for name in ("input", "label")}

    def forward(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(weave.feed.prepare(images.to(device))[0])
        return logits[None]

    scores = _scores(weave, fields, forward, 1)
    assert scores is not None
    return {
        "ma": _share(float(scores.accuracy[0]), note="of the exported mean model"),
        "asr": _share(float(scores.success[0]), "lower", "of the exported mean model"),
    }
