"""Measured curves, their fit, profiles, and the workloads."""

from __future__ import annotations

import numpy as np
import pytest

from plait_malletrain.curves import CurveTable, fitted, prior
from plait_malletrain.errors import MalletrainError
from plait_malletrain.profiling import Profile, ceiling, profile_sizes, worthwhile
from plait_malletrain.workloads import IMAGENET, WORKLOADS, workload

pytestmark = pytest.mark.smoke


def true_rate(n: np.ndarray, r1: float = 500.0, rho: float = 0.4, gamma: float = 0.01) -> np.ndarray:
    return r1 * n / (1 + rho * 2 * (n - 1) / n + gamma * (n - 1))


def test_a_curve_of_the_fits_own_family_is_found_from_five_sizes() -> None:
    measured = {n: float(true_rate(np.array(float(n)))) for n in (1, 2, 4, 8, 16)}
    assert fitted(measured, 64)[1:] == pytest.approx(true_rate(np.arange(1.0, 65)), rel=1e-6)


@pytest.mark.parametrize("model", IMAGENET)
def test_measured_points_are_reproduced_whatever_their_shape(model: str) -> None:
    measured = dict(zip((1, 2, 4, 8, 16), IMAGENET[model], strict=False))
    curve = fitted(measured, 64)
    assert [curve[n] for n in measured] == pytest.approx(list(measured.values()))
    assert np.all(np.isfinite(curve)) and np.all(curve[1:] > 0)


def test_no_measurement_is_the_prior_and_one_scales_it() -> None:
    assert fitted({}, 4).tolist() == [0.0, 1.0, 2**0.9, 3**0.9, 4**0.9]
    assert fitted({2: 100.0}, 4)[2] == pytest.approx(100.0)
    assert fitted({2: 100.0}, 4)[4] == pytest.approx(100.0 * prior(4) / prior(2))


def test_a_superlinear_pair_gives_finite_rates_below_it() -> None:
    """Two sizes of which the smaller is not 1, more than proportional: the constant term alone would be 0."""
    curve = fitted({2: 10.0, 4: 100.0}, 8)
    assert np.all(np.isfinite(curve)) and curve[1] > 0


def test_a_table_takes_totals_and_smooths_what_it_measures_again() -> None:
    table = CurveTable(8, up=18.0, down=12.0)
    table.record(2, samples=300.0, seconds=10.0)
    table.record(2, samples=100.0, seconds=5.0)  # 20/s: half of the old 30, half of the new
    table.record(9, 10.0, 1.0)
    table.record(1, 10.0, 0.0)
    assert table.rates == {2: 25.0} and table.counts == {2: 2}
    table.rescaled(True, -3.0)
    assert table.up == 18.0
    table.rescaled(True, 20.0)
    table.rescaled(False, 7.0)
    again = CurveTable(8)
    again.load_state_dict(table.state_dict())
    assert (again.up, again.down, again.rates) == (20.0, 7.0, {2: 25.0})
    assert again.curve.tolist() == table.curve.tolist()


def test_the_order_of_a_profile() -> None:
    assert profile_sizes(16) == [16, 8, 4, 2, 1]
    assert profile_sizes(13, ascending=True) == [1, 2, 4, 8]
    assert profile_sizes(16, nmin=3) == [16, 8, 4, 3]
    assert ceiling(20, 16, [1, 1, 6]) == 12
    assert worthwhile(20 * (18 + 4 * 12), 5, 18, 12) and not worthwhile(1319, 5, 18, 12)  # 66 s of stall


def test_nodes_that_are_taken_from_a_profile_are_a_scale_down() -> None:
    profile = Profile(0, [16, 8, 4, 2, 1])
    profile.due = 30.0
    profile.lost(11)
    assert profile.sizes == [11, 8, 4, 2, 1] and profile.due is None
    profile.lost(8)
    assert profile.sizes == [8, 4, 2, 1]
    assert [profile.step_done() for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_seeded_and_start_at_the_one_node_rate(name: str) -> None:
    jobs, again, other = workload(name, 40, 5), workload(name, 40, 5), workload(name, 40, 6)
    assert np.array_equal(jobs.rates, again.rates) and np.array_equal(jobs.arrival, again.arrival)
    assert not np.array_equal(jobs.up, other.up) or name == "hpo"
    assert jobs.rates.shape == (40, 65) and np.all(jobs.rates[:, 0] == 0) and np.all(jobs.rates[:, 1:] > 0)
    assert np.all(np.diff(jobs.arrival) >= 0) and jobs.arrival[0] == 0


def test_the_ranges_of_the_card() -> None:
    nas, hpo, off = (workload(name, 500, 0) for name in ("nas", "hpo", "nas-off"))
    assert 300 <= nas.rates[:, 1].min() and nas.rates[:, 1].max() <= 3000
    assert np.median(nas.work / nas.rates[:, 1] / 3600) == pytest.approx(10, rel=0.1)
    assert np.ptp(hpo.rates, axis=0).max() == 0 and hpo.arrival[-1] <= 36_000
    assert np.any(np.diff(off.rates[:, 1:], axis=1) < 0)  # drops: not monotonic
    assert workload("imagenet", 8, 0).rates[0, 64] == 202135.4
    assert len(workload("nas", 0, 0)) == 0


def test_workloads_that_there_are_not() -> None:
    with pytest.raises(MalletrainError, match="workload = 'bert'"):
        workload("bert", 1, 0)
    with pytest.raises(MalletrainError, match="jobs = -1"):
        workload("nas", -1, 0)
