"""The papers' claims in full, as `plait verify` runs them: minutes to an hour. `pytest -m slow`.

What must hold by construction is asserted. What is an empirical question is run to its verdict and printed: a claim
that fails is a result, and the scoreboard in docs says so.
"""

from __future__ import annotations

import pytest

from plait_experiments.schema import load
from plait_experiments.verdicts import Verdict
from plait_experiments.verification import verify

BY_CONSTRUCTION = {"chase": ("exact",), "fairsam": ("identities",)}
EMPIRICAL = {"chase": ("accuracy", "speed"), "fairsam": ("fair",)}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("plugin", list(BY_CONSTRUCTION))
def test_what_holds_by_construction(plugin: str) -> None:
    result = verify(plugin, only=BY_CONSTRUCTION[plugin])
    verdicts = {r.claim.id: r.verdict for r in result.claims}
    if Verdict.NOT_RUN in verdicts.values():
        pytest.skip(f"not run here: {result.notes}")
    assert set(verdicts.values()) == {Verdict.HOLDS}, verdicts


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("plugin", list(EMPIRICAL))
def test_empirical_claims_come_to_a_verdict(plugin: str) -> None:
    result = verify(plugin, only=EMPIRICAL[plugin])
    for tested in result.claims:
        print(
            tested.claim.id,
            tested.verdict.value,
            *[(j.text, j.margin, j.verdict.value) for j in tested.judgements],
            sep="\n  ",
        )
        if tested.verdict is Verdict.NOT_RUN:
            pytest.skip(f"not run here: {result.notes}")
        assert all(j.margin is not None for j in tested.judgements)


def test_every_claim_named_here_exists() -> None:
    for plugin, names in [*BY_CONSTRUCTION.items(), *EMPIRICAL.items()]:
        book = load(plugin)
        assert book is not None
        assert set(names) <= {claim.id for claim in book.claims}
