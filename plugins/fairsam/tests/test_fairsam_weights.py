"""Weight tables against brute-force loops, and the adaptive rule against a hand calculation."""

import math
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait_fairsam.errors import FairsamError, FairsamWarning
from plait_fairsam.weights import TABLES, AdaptiveWeights, TableWeights, cell_counts, weight_table

examples = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=60).filter(
    lambda pairs: len({s for s, _ in pairs}) > 1
)


def brute_force(pairs, mode, power, size_g, size_k):
    """The card's table, cell by cell, in Python floats."""
    n = len(pairs)
    n_sy, n_s, n_y = Counter(pairs), Counter(s for s, _ in pairs), Counter(y for _, y in pairs)
    table = {}
    for s, y in n_sy:
        value = {
            "none": 1.0,
            "group": n / (size_g * n_s[s]),
            "subgroup": n / (size_g * size_k * n_sy[s, y]),
            "kamiran": n_s[s] * n_y[y] / (n * n_sy[s, y]),
        }[mode]
        table[s, y] = value**power
    mean = sum(table[pair] for pair in pairs) / n
    return {cell: value / mean for cell, value in table.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pairs=examples, mode=st.sampled_from(TABLES), power=st.sampled_from([0.0, 0.3, 1.0]))
def test_tables_equal_the_loops_and_have_mean_one(pairs, mode, power):
    groups, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FairsamWarning)
        weights = TableWeights.from_data(groups, labels, mode, power=power, num_groups=3, num_classes=4)
    expected = brute_force(pairs, mode, power, 3, 4)
    for s in range(3):
        for y in range(4):
            assert float(weights.table[s, y]) == pytest.approx(expected.get((s, y), 0.0), rel=1e-5)
    assert float(weights(groups, labels).double().mean()) == pytest.approx(1.0, rel=1e-6)


def test_what_each_table_equalises():
    groups = torch.tensor([0] * 8 + [1] * 4)
    labels = torch.tensor([0] * 6 + [1] * 2 + [0] * 1 + [1] * 3)
    group = TableWeights.from_data(groups, labels, "group")(groups, labels)
    assert group[groups == 0].sum() == pytest.approx(group[groups == 1].sum())
    cell = TableWeights.from_data(groups, labels, "subgroup")(groups, labels)
    totals = [float(cell[(groups == s) & (labels == y)].sum()) for s in (0, 1) for y in (0, 1)]
    assert totals == pytest.approx([3.0] * 4)
    kamiran = TableWeights.from_data(groups, labels, "kamiran")(groups, labels)
    rates = [float(kamiran[(groups == s) & (labels == 1)].sum() / kamiran[groups == s].sum()) for s in (0, 1)]
    assert rates[0] == pytest.approx(rates[1])  # weighted, the label no longer depends on the group


def test_none_is_exactly_one_and_kamiran_too_when_independent():
    counts = torch.tensor([[6, 3, 9], [14, 7, 21]])
    assert torch.equal(weight_table(counts, "none"), torch.ones(2, 3))
    assert torch.equal(weight_table(counts, "kamiran"), torch.ones(2, 3))
    assert torch.equal(weight_table(counts, "group", power=0.0), torch.ones(2, 3))


def test_empty_cells_weigh_nothing_and_one_warning_names_them():
    with pytest.warns(
        FairsamWarning, match=r"\(group 1, label 0\), \(group 2, label 0\), \(group 2, label 1\)"
    ) as caught:
        table = weight_table(torch.tensor([[4, 4], [0, 2], [0, 0]]), "subgroup", power=0.0)
    assert len(caught) == 1
    assert table[1, 0] == table[2, 0] == table[2, 1] == 0 and table.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, y: cell_counts(torch.zeros_like(g), y), r"groups=\[0\] is the only group"),
        (lambda g, y: cell_counts(g - 1, y), r"groups\[0\]=-1 must not be negative"),
        (lambda g, y: cell_counts(g, y, num_groups=1), r"groups\[1\]=1 is outside 0\.\.0"),
        (lambda g, y: cell_counts(g, y, num_classes=2), r"labels\[2\]=2 is outside 0\.\.1"),
        (lambda g, y: cell_counts(g.float(), y), r"groups must be integers"),
        (lambda g, y: cell_counts(g, y[:2]), r"same shape"),
        (lambda g, y: TableWeights.from_data(g, y, "grup"), r"weights='grup' is unknown.*did you mean 'group'"),
        (lambda g, y: TableWeights.from_data(g, y, power=1.5), r"weights_power=1.5 .*\[0, 1\]"),
        (lambda g, y: TableWeights.from_data(g, y, power=math.nan), r"weights_power=nan"),
        (lambda g, y: TableWeights(torch.tensor([[1.0, -1.0]])), r"table must be"),
        (lambda g, y: weight_table(torch.zeros(2, 2)), r"at least one example"),
        (lambda g, y: AdaptiveWeights([3, 0]), r"group_counts=\[3.0, 0.0\]"),
        (lambda g, y: AdaptiveWeights([3, 1], eta_q=-1), r"eta_q=-1"),
        (lambda g, y: AdaptiveWeights([3, 1], clip=(2, 3)), r"clip=\(2, 3\)"),
        (lambda g, y: AdaptiveWeights([3, 1], start="prior"), r"start='prior'"),
        (lambda g, y: AdaptiveWeights([3, 1]).load_state_dict({"q": torch.ones(3)}), r"number of groups=3"),
        (lambda g, y: AdaptiveWeights([3, 1])(g + 5), r"groups\[0\]=5"),
    ],
)
@pytest.mark.filterwarnings("ignore::plait_fairsam.errors.FairsamWarning")
def test_bad_input_is_one_line_naming_option_and_value(call, message):
    with pytest.raises(FairsamError, match=message) as caught:
        call(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::plait_fairsam.errors.FairsamWarning")
def test_lookup_refuses_indices_that_would_wrap_around():
    weights = TableWeights.from_data(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(FairsamError, match=r"groups\[0\]=-1"):
        weights(torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises(FairsamError, match=r"labels\[0\]=2"):
        weights(torch.tensor([1]), torch.tensor([2]))


def test_adaptive_follows_the_hand_calculation():
    weights = AdaptiveWeights([6, 2], eta_q=0.5)
    assert weights(torch.tensor([0, 1])).tolist() == pytest.approx([1.0, 1.0])
    weights.update(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 1]))  # group means 2 and 4, their mean 3
    a, b = 0.5 * math.exp(-0.5), 0.5 * math.exp(0.5)
    q = [a / (a + b), b / (a + b)]
    assert weights.q.tolist() == pytest.approx(q)
    assert weights.table.tolist() == pytest.approx([value / (q[0] * 0.75 + q[1] * 0.25) for value in q])
    assert float((weights.table * torch.tensor([0.75, 0.25])).sum()) == pytest.approx(1.0)


def test_adaptive_keeps_absent_groups_and_clips():
    weights = AdaptiveWeights([5, 3, 2], eta_q=1.0)
    weights.update(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    assert weights.q.tolist() == pytest.approx([1 / 3] * 3)  # one group present: nothing to compare with
    weights.update(torch.tensor([0.0, 2.0]), torch.tensor([0, 2]))
    raw = [math.exp(-1) / 3, 1 / 3, math.exp(1) / 3]
    assert weights.q.tolist() == pytest.approx([value / sum(raw) for value in raw])
    weights.update(torch.tensor([0.0, 100.0]), torch.tensor([0, 2]))
    clipped = [0.05 / 3, 1 / 3 / sum(raw), 20 / 3]
    assert weights.q.tolist() == pytest.approx([value / sum(clipped) for value in clipped], rel=1e-4)
    weights.clip = None
    before = weights.q.clone()
    weights.update(torch.tensor([math.nan, math.nan]), torch.tensor([0, 2]))
    assert torch.allclose(weights.q, before)


def test_adaptive_start_group_is_the_group_table():
    counts = torch.tensor([[5, 4], [1, 2]])
    weights = AdaptiveWeights(counts.sum(1), start="group")
    assert torch.allclose(weights.table, weight_table(counts, "group")[:, 0])
    weights.update(torch.tensor([0.1, 2.0]), torch.tensor([0, 1]))
    assert float((weights.table * weights.prior).sum()) == pytest.approx(1.0)


def test_adaptive_reduces_sums_and_counts_over_ranks():
    whole, first = AdaptiveWeights([5, 5]), AdaptiveWeights([5, 5])
    losses, groups = torch.tensor([1.0, 2.0, 5.0, 0.5]), torch.tensor([0, 0, 1, 1])
    whole.update(losses, groups)
    other = torch.tensor([[2.0, 0.5], [1.0, 1.0]])  # sums and counts of the rank holding examples 1 and 3
    first.reduce = lambda sums: sums + other
    first.update(losses[::2], groups[::2])
    assert torch.allclose(first.q, whole.q)


def test_states_resume_bit_for_bit():
    torch.manual_seed(0)
    batches = [(torch.rand(8), torch.randint(0, 2, (8,))) for _ in range(6)]
    whole, first = AdaptiveWeights([5, 3]), AdaptiveWeights([5, 3])
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:3]:
        first.update(*batch)
    second = AdaptiveWeights([5, 3])
    second.load_state_dict(first.state_dict())
    for batch in batches[3:]:
        second.update(*batch)
    assert torch.equal(second.q, whole.q)
    table = TableWeights(torch.rand(2, 3))
    other = TableWeights(torch.zeros(2, 3))
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.table, table.table)
    with pytest.raises(FairsamError, match="does not fit"):
        TableWeights(torch.zeros(3, 3)).load_state_dict(table.state_dict())
