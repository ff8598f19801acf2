"""Option values of every method that FairSAM is compared with (card section 6). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BASELINES"]


def _preset(**changes: Any) -> Mapping[str, Any]:
    plain = {
        "weights": "none",
        "weights_power": 1.0,
        "rho": 0.0,
        "perturbation": "weighted",
        "asam": False,
        "eta": 0.01,
        "penalty": 0.0,
    }
    return MappingProxyType(plain | changes)


BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sgd": _preset(),
        "reweighing": _preset(weights="group"),
        "kamiran": _preset(weights="kamiran"),
        "sam": _preset(rho=0.05),
        "asam": _preset(rho=0.5, asam=True),
        "groupdro": _preset(weights="groupdro", eta_q=0.01),
        "penalty": _preset(penalty=1.0),
        "fairsam": _preset(weights="group", rho=0.05),
        "fairsam-plain": _preset(weights="group", rho=0.05, perturbation="plain"),
        "fairsam-ascent_only": _preset(weights="group", rho=0.05, perturbation="ascent_only"),
        "fairsam-per_group": _preset(weights="group", rho=0.05, perturbation="per_group"),
        "fairsam-per_group_whole": _preset(weights="group", rho=0.05, perturbation="per_group_whole"),
        "fairsam-asam": _preset(weights="group", rho=1.0, asam=True),
    }
)
"""Option values of every method compared; ``weights="groupdro"`` stands for `GroupDRO` as the weighting rule.

| name | what it is | source |
| --- | --- | --- |
| sgd | the base optimizer, unweighted | |
| reweighing | group weights, no perturbation | the paper compares with reweighing strategies [paper] |
| kamiran | Kamiran-Calders weights, no perturbation | Kamiran and Calders 2012 |
| sam | SAM, rho 0.05 | Foret et al. 2021; the paper's main comparison [paper] |
| asam | ASAM, rho 0.5, eta 0.01 | Kwon et al. 2021; our addition |
| groupdro | GroupDRO on the unperturbed loss | Sagawa et al. 2020; our addition |
| penalty | sgd + 1.0 x group loss gap | the paper compares with fairness constraints [paper]; this form [inferred] |
| fairsam | group weights in ascent and descent, rho 0.05 | arXiv 2503.22934; the weights' form [inferred] |
| fairsam-plain, -ascent_only, -per_group | ablations of where the weights act | card section 2.4 [inferred] |
| fairsam-per_group_whole | per_group on whole batches, for networks with BatchNorm | ours |
| fairsam-asam | group weights, ASAM's perturbation, rho 1 | card section 2.4, "asam" |
"""
