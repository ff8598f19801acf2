"""The clean figures on the validation split, by which rho is chosen."""

from __future__ import annotations

from pathlib import Path

import plait


def test_only_clean_figures_are_recorded(tmp_path: Path) -> None:
    run = plait.run(
        {"data": {"name": "tiny-images"}, "model": {"name": "tiny-cnn"}, "train": {"steps": 8}, "device": "cpu"},
        plugins={"fairsam": {"corruptions": ["gaussian_noise"], "severities": [2]}},
        out=tmp_path / "r",
    )
    names = {n.removesuffix("@validation") for n in run.metrics if n.startswith("fairsam/") and "@validation" in n}
    assert names == {
        "fairsam/clean_accuracy",
        "fairsam/clean_accuracy_worst_group",
        "fairsam/clean_gap",
        "fairsam/clean_accuracy_group_0",
        "fairsam/clean_accuracy_group_1",
    }
    groups = [run.metrics[f"fairsam/clean_accuracy_group_{a}@validation"] for a in (0, 1)]
    assert run.metrics["fairsam/clean_accuracy_worst_group@validation"] == min(groups)
    assert run.metrics["fairsam/clean_gap@validation"] == max(groups) - min(groups)
    assert run.details["fairsam/clean_gap@validation"]["unit"] == "points"
