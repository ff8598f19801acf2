"""The step against naive loops, another library's SAM and hand-written per-group gradients."""

import copy
import math

import pytest
import torch
from torch import nn

from plait_fairsam.errors import FairsamError
from plait_fairsam.gradients import ModelGradients
from plait_fairsam.sam import FairSAM, Losses

CE = nn.CrossEntropyLoss(reduction="none")


def network(*, dropout=0.0, norm=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4, momentum=0.3) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4 * 36, 3),
    )


def data(n=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)
    return x, y, torch.arange(n) % 3 % 2, 0.5 + torch.rand(n, generator=g)


def build(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return optimizer, FairSAM(model.parameters(), optimizer, **options), ModelGradients(model, CE)


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def naive_step(model, optimizer, x, y, v1, v2, rho, steps=1):
    """SAM as its authors' PyTorch ports write it: loops, momentum 0 to hold BatchNorm, clones to go back."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(steps):
        optimizer.zero_grad()
        (v1 * CE(model(x), y)).mean().backward()
        length = torch.norm(torch.stack([p.grad.norm(p=2) for p in model.parameters()]), p=2)
        old = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad * (rho / (length + 1e-12)))
        kept = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
        for m in norms:
            m.momentum = 0.0
        optimizer.zero_grad()
        (v2 * CE(model(x), y)).mean().backward()
        for m, (momentum, tracked) in zip(norms, kept, strict=True):
            m.momentum, m.num_batches_tracked = momentum, tracked
        with torch.no_grad():
            for p, w in zip(model.parameters(), old, strict=True):
                p.copy_(w)
        optimizer.step()


@pytest.mark.parametrize("mode", ["weighted", "plain", "ascent_only"])
def test_equals_the_naive_loop_bit_for_bit(mode):
    x, y, _, v = data()
    ours = network()
    naive = copy.deepcopy(ours)
    _, step, gradients = build(ours, rho=0.1, perturbation=mode)
    reference = torch.optim.SGD(naive.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    ones = torch.ones_like(v)
    v1, v2 = {"weighted": (v, v), "plain": (ones, v), "ascent_only": (v, ones)}[mode]
    for _ in range(4):
        step.step(gradients.on(x, y, weights=v))
    naive_step(naive, reference, x, y, v1, v2, 0.1, steps=4)
    assert same(ours, naive)


@pytest.mark.parametrize("weights", [None, torch.ones(12)])
def test_without_weights_it_is_sam_bit_for_bit(weights):
    x, y, _, _ = data()
    ours = network()
    naive = copy.deepcopy(ours)
    _, step, gradients = build(ours, rho=0.05)
    reference = torch.optim.SGD(naive.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(3):
        step.step(gradients.on(x, y, weights=weights))
    naive_step(naive, reference, x, y, 1.0, 1.0, 0.05, steps=3)
    assert same(ours, naive)


@pytest.mark.parametrize("adaptive", [False, True])
def test_agrees_with_pytorch_optimizer(adaptive):
    other_library = pytest.importorskip("pytorch_optimizer")
    x, y, _, _ = data()
    ours = network(norm=False).double()
    theirs = copy.deepcopy(ours)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    step = FairSAM(ours.parameters(), optimizer, rho=0.2, asam=adaptive, eta=0.0)
    reference = other_library.SAM(theirs.parameters(), torch.optim.SGD, rho=0.2, adaptive=adaptive, lr=0.1)

    def closure():
        loss = CE(theirs(x.double()), y).mean()
        loss.backward()
        return loss

    for _ in range(3):
        step.step(ModelGradients(ours, CE).on(x.double(), y))
        reference.zero_grad()
        closure()
        reference.step(closure)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-8)  # their norm is float32


@pytest.mark.parametrize("mode", ["weighted", "plain"])
def test_rho_zero_is_the_weighted_optimizer_bit_for_bit(mode):
    x, y, _, v = data()
    ours = network(dropout=0.4)
    plain = copy.deepcopy(ours)
    _, step, gradients = build(ours, rho=0.0, perturbation=mode)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    torch.manual_seed(5)
    reports = [step.step(gradients.on(x, y, weights=v)) for _ in range(3)]
    torch.manual_seed(5)
    for _ in range(3):
        reference.zero_grad()
        (v * CE(plain(x), y)).mean().backward()
        reference.step()
    assert same(ours, plain)  # BatchNorm statistics included
    assert [r.evaluations for r in reports] == [1, 1, 1] and reports[0].ascent_loss is None


def test_passes_are_two_and_say_what_they_should():
    calls = []

    class Spy:
        def __call__(self, **arguments):
            calls.append(arguments)
            return Losses(torch.tensor(0.0), torch.zeros(2), [torch.ones(3)] if arguments["probe"] else None)

    weight = nn.Parameter(torch.zeros(3))
    step = FairSAM([weight], None)
    assert step.step(Spy(), apply=False).evaluations == 2
    common = {"weighted": True, "rows": None, "accumulate": False, "scale": 1.0}
    assert calls == [
        common | {"probe": True, "replay": False, "freeze_statistics": False},
        common | {"probe": False, "replay": True, "freeze_statistics": True},
    ]


def test_two_backward_passes_of_the_model_per_step():
    x, y, _, v = data()
    model = network()
    passes = {"forward": 0, "backward": 0}
    model[-1].register_forward_hook(lambda *_: passes.__setitem__("forward", passes["forward"] + 1))
    model[-1].register_full_backward_hook(lambda *_: passes.__setitem__("backward", passes["backward"] + 1))
    _, step, gradients = build(model)
    for k in (1, 2, 3):
        step.step(gradients.on(x, y, weights=v))
        assert passes == {"forward": 2 * k, "backward": 2 * k}


def test_batchnorm_statistics_enter_once_and_momentum_is_untouched():
    x, y, _, v = data()
    model = network()
    once = copy.deepcopy(model)
    _, step, gradients = build(model, rho=0.5)
    step.step(gradients.on(x, y, weights=v))
    once(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[1], name), getattr(once[1], name))
    assert model[1].momentum == 0.3 and model[1].track_running_stats is True


def test_dropout_noise_is_replayed_and_the_stream_goes_on_as_if_drawn_once():
    x, y, _, _ = data()
    model = network(dropout=0.5, norm=False)
    masks = []
    model[4].register_forward_hook(lambda _, i, o: masks.append((o != 0) | (i[0] == 0)))
    _, step, gradients = build(model, rho=1e-7)
    torch.manual_seed(3)
    step.step(gradients.on(x, y))
    after = torch.get_rng_state()
    assert torch.equal(masks[0], masks[1]) and not masks[0].all()
    torch.manual_seed(3)
    model(x)
    assert torch.equal(after, torch.get_rng_state())
    step.step(gradients.on(x, y))
    assert not torch.equal(masks[0], masks[2])


def test_restores_exactly_and_apply_false_leaves_the_update_to_the_caller():
    x, y, _, v = data()
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, step, gradients = build(model, rho=0.7)
    report = step.step(gradients.on(x, y, weights=v), apply=False)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert report.loss > report.ascent_loss  # the ascent ascended
    assert report.per_example.shape == (12,) and not report.per_example.requires_grad
    assert float(report.loss) == pytest.approx(float((v * report.per_example).mean()), rel=1e-6)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert not torch.equal(model[0].weight, before[0])
    assert "old_p" not in optimizer.state[model[0].weight]


def test_weights_are_restored_when_the_second_pass_fails():
    x, y, _, v = data()
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, step, gradients = build(model)
    calls = []

    def fails(outputs, targets):
        calls.append(1)
        if len(calls) == 2:
            raise FloatingPointError("second pass")
        return CE(outputs, targets)

    gradients.loss_fn = fails
    with pytest.raises(FloatingPointError):
        step.step(gradients.on(x, y, weights=v))
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert model[1].track_running_stats and step.state_dict() == {"steps": 0}
    assert not optimizer.state


def test_interval_perturbs_every_kth_step_and_the_counter_resumes():
    x, y, _, v = data()
    model = network()
    _, step, gradients = build(model, interval=3)
    assert [step.step(gradients.on(x, y, weights=v)).evaluations for _ in range(7)] == [1, 1, 2, 1, 1, 2, 1]
    _, resumed, gradients = build(model, interval=3)
    resumed.load_state_dict(step.state_dict())
    assert [resumed.step(gradients.on(x, y, weights=v)).evaluations for _ in range(3)] == [1, 2, 1]


def test_state_is_refused_in_the_middle_of_a_step():
    model = network()
    x, y, _, _ = data()
    _, step, gradients = build(model)

    def nosy(outputs, targets):
        step.state_dict()
        return CE(outputs, targets)

    gradients.loss_fn = nosy
    with pytest.raises(RuntimeError, match="state_dict was called in the middle of a step"):
        step.step(gradients.on(x, y))
    assert step.state_dict() == {"steps": 0}


def test_resuming_from_a_checkpoint_ends_bit_identical():
    x, y, _, v = data()

    def run(model, optimizer, step, gradients, first, last):
        for k in range(first, last):
            torch.manual_seed(k)
            step.step(gradients.on(x, y, weights=v))

    whole, part = network(dropout=0.3), network(dropout=0.3)
    run(whole, *build(whole, interval=2), 0, 6)
    built = build(part, interval=2)
    run(part, *built, 0, 3)
    state = copy.deepcopy((part.state_dict(), built[0].state_dict(), built[1].state_dict()))
    fresh = network(seed=99, dropout=0.3)
    built = build(fresh, interval=2)
    for thing, saved in zip((fresh, *built[:2]), state, strict=True):
        thing.load_state_dict(saved)
    run(fresh, *built, 3, 6)
    assert same(whole, fresh)


@pytest.mark.parametrize("rho", [0.2, (0.2, 0.05), (0.0, 0.3)])
def test_per_group_equals_the_hand_written_gradient(rho):
    x, y, s, v = data()
    model = network(norm=False).double()
    x = x.double()
    parameters = list(model.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    losses = torch.zeros(12, dtype=torch.float64)
    for a in (0, 1):
        radius = rho if isinstance(rho, float) else rho[a]
        rows = s == a
        g = torch.autograd.grad(CE(model(x[rows]), y[rows]).mean(), parameters)
        length = math.sqrt(sum(float(part.square().sum()) for part in g))
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, part in zip(moved.parameters(), g, strict=True):
                p += radius * part / length
        l_a = CE(moved(x[rows]), y[rows])
        losses[rows] = l_a.detach()
        for total, part in zip(expected, torch.autograd.grad(l_a.mean(), list(moved.parameters())), strict=True):
            total += part / 2
    _, step, gradients = build(model, rho=rho, perturbation="per_group")
    report = step.step(gradients.on(x, y, weights=v), groups=s, apply=False)
    for p, g in zip(parameters, expected, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-12)
    assert torch.allclose(report.per_example, losses)
    assert float(report.loss) == pytest.approx(float((losses[s == 0].mean() + losses[s == 1].mean()) / 2))
    assert report.evaluations == (3 if rho == (0.0, 0.3) else 4)


def test_per_group_averages_over_the_groups_present():
    x, y, _, _ = data()
    model = network(norm=False)
    groups = torch.arange(12) % 3 * 2  # groups 0, 2, 4: three present
    _, step, gradients = build(model, rho=0.0, perturbation="per_group")
    step.step(gradients.on(x, y), groups=groups, apply=False)
    mean = torch.stack([CE(model(x[groups == a]), y[groups == a]).mean() for a in (0, 2, 4)]).mean()
    for p, g in zip(model.parameters(), torch.autograd.grad(mean, list(model.parameters())), strict=True):
        assert torch.allclose(p.grad, g, atol=1e-6)


def test_per_group_with_an_absent_group_and_statistics_per_sub_batch():
    x, y, s, _ = data()
    model = network()
    _, step, gradients = build(model, perturbation="per_group", rho=(0.1, 0.1, 0.1))
    step.step(gradients.on(x, y), groups=s * 2)
    assert model[1].num_batches_tracked == 2
    _, single, gradients = build(network(), perturbation="per_group")
    assert single.step(gradients.on(x, y), groups=torch.ones(12, dtype=torch.long)).evaluations == 2
    _, zero, gradients = build(network(norm=False), perturbation="per_group", rho=0.0)
    report = zero.step(gradients.on(x, y), groups=s)
    assert report.evaluations == 2 and report.ascent_loss is None


def per_group_whole_by_hand(model, x, y, s, rho):
    """Oracle: whole-batch forward passes, losses of one group at a time, a deep copy for every displaced network."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for a in (0, 1):
        rows = s == a
        here = copy.deepcopy(model)
        g = torch.autograd.grad(CE(here(x), y)[rows].mean(), list(here.parameters()))
        length = math.sqrt(sum(float(part.square().sum()) for part in g))
        with torch.no_grad():
            for p, part in zip(here.parameters(), g, strict=True):
                p += rho * part / length
        gradients = torch.autograd.grad(CE(here(x), y)[rows].mean(), list(here.parameters()))
        total = [t + part / 2 for t, part in zip(total, gradients, strict=True)]
    return total


def test_per_group_whole_normalises_over_all_groups_and_counts_the_batch_once():
    x, y, s, v = data()
    model = network()
    statistics = copy.deepcopy(model)
    statistics(x)
    expected = per_group_whole_by_hand(network(), x, y, s, 0.2)
    _, step, gradients = build(model, rho=0.2, perturbation="per_group_whole")
    report = step.step(gradients.on(x, y, weights=v), groups=s, apply=False)
    for p, g in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-5, atol=1e-7)
    assert report.evaluations == 4 and report.per_example.shape == (12,)
    for left, right in zip(model[1].buffers(), statistics[1].buffers(), strict=True):
        assert torch.equal(left, right)
    apart = network()
    _, step, gradients = build(apart, rho=0.2, perturbation="per_group")
    step.step(gradients.on(x, y, weights=v), groups=s, apply=False)
    assert not torch.allclose(apart[0].weight.grad, model[0].weight.grad, rtol=1e-2)


@pytest.mark.parametrize("rho", [0.2, (0.0, 0.3)])
def test_without_batch_norm_and_dropout_whole_batches_change_nothing(rho):
    x, y, s, v = data()
    steps = []
    for mode in ("per_group", "per_group_whole"):
        model = network(norm=False).double()
        _, step, gradients = build(model, rho=rho, perturbation=mode)
        report = step.step(gradients.on(x.double(), y, weights=v), groups=s, apply=False)
        steps.append((report, [p.grad for p in model.parameters()]))
    (groups_report, left), (whole_report, right) = steps
    assert torch.allclose(groups_report.per_example, whole_report.per_example)
    assert torch.allclose(groups_report.loss, whole_report.loss)
    assert groups_report.evaluations == whole_report.evaluations
    for a, b in zip(left, right, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_whole_batches_replay_their_dropout_in_every_pass():
    x, y, s, _ = data()
    seen = []
    model = network(dropout=0.5)
    model[4].register_forward_hook(lambda m, inputs, output: seen.append(output == 0))
    _, step, gradients = build(model, rho=0.0, perturbation="per_group_whole")
    step.step(gradients.on(x, y), groups=s, apply=False)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("asam", [False, True])
def test_masked_weights_stay_exactly_zero_through_the_step(asam):
    x, y, _, v = data()
    model = network()
    mask = torch.rand(model[-1].weight.shape, generator=torch.Generator().manual_seed(2)) > 0.5
    with torch.no_grad():
        model[-1].weight.mul_(mask)
    model[-1].weight.register_hook(lambda g: g * mask)
    seen = []
    model[-1].register_forward_pre_hook(lambda m, _: seen.append(m.weight.detach().clone()))
    _, step, gradients = build(model, rho=0.5, asam=asam)
    for _ in range(2):
        step.step(gradients.on(x, y, weights=v))
    assert len(seen) == 4 and all((w[~mask] == 0).all() for w in seen)
    assert not torch.equal(seen[0][mask], seen[1][mask])
    # the same as training the surviving weights alone: the norm counted nothing else
    assert (model[-1].weight[~mask] == 0).all()


def test_parameters_without_gradients_are_left_alone():
    x, y, _, _ = data()
    model = network()
    unused, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    parameters = [*model.parameters(), unused, frozen]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    step = FairSAM(parameters, optimizer)
    step.step(ModelGradients(model, CE, parameters).on(x, y))
    assert unused.grad is None and torch.equal(unused, torch.ones(3)) and torch.equal(frozen, torch.ones(3))


def test_a_probe_leaves_p_grad_and_accumulate_adds():
    x, y, _, v = data()
    model = network(norm=False)
    on = ModelGradients(model, CE).on(x, y, weights=v)
    on(weighted=False)
    kept = [p.grad.clone() for p in model.parameters()]
    probed = on(weighted=True, probe=True).gradients
    assert all(torch.equal(p.grad, k) for p, k in zip(model.parameters(), kept, strict=True))
    on(weighted=True, accumulate=True, scale=0.5)
    for p, k, g in zip(model.parameters(), kept, probed, strict=True):
        assert torch.allclose(p.grad, k + 0.5 * g, atol=1e-7)
    rows = torch.tensor([3, 1])
    part = on(weighted=True, rows=rows, probe=True)
    assert part.per_example.shape == (2,)
    assert float(part.loss) == pytest.approx(float((v[rows] * CE(model(x[rows]), y[rows])).detach().mean()), rel=1e-6)


def test_synchronised_perturbation_and_sharded_norm_are_used():
    x, y, _, _ = data()
    model = network(norm=False)
    other = copy.deepcopy(model)
    _, step, gradients = build(model, sync=lambda parts: [torch.zeros_like(g) for g in parts])
    report = step.step(gradients.on(x, y), apply=False)
    assert float(report.loss) == float(report.ascent_loss) and float(report.gradient_norm) == 0
    _, step, gradients = build(other, rho=0.3, reduce_norm=lambda squared: squared * 4)
    halved = step.step(gradients.on(x, y), apply=False)
    _, step, gradients = build(other, rho=0.15)
    assert float(halved.loss) == pytest.approx(float(step.step(gradients.on(x, y), apply=False).loss), rel=1e-6)


def test_rebinding_to_new_parameters():
    x, y, _, _ = data()
    _, step, _ = build(network())
    smaller = network(seed=4)
    step.rebind(smaller.parameters())
    step.optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    before = smaller[0].weight.detach().clone()
    step.step(ModelGradients(smaller, CE).on(x, y))
    assert not torch.equal(before, smaller[0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, r"rho=-0.1 must be a finite number >= 0"),
        ({"rho": math.nan}, r"rho=nan"),
        ({"rho": math.inf}, r"rho=inf"),
        ({"rho": "0.05"}, r"rho='0.05' is not a number"),
        ({"rho": (0.1, 0.2)}, r"rho=\(0.1, 0.2\).*per_group"),
        ({"rho": (0.1, -1), "perturbation": "per_group"}, r"rho\[1\]=-1"),
        ({"perturbation": "weigthed"}, r"perturbation='weigthed' is unknown.*did you mean 'weighted'"),
        ({"eta": -1.0}, r"eta=-1.0"),
        ({"interval": 0}, r"interval=0 must be an integer >= 1"),
        ({"interval": 1.5}, r"interval=1.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(FairsamError, match=message):
        FairSAM([weight], None, **options)


def test_other_bad_input_is_refused():
    x, y, s, _ = data()
    model = network()
    optimizer, step, gradients = build(model)
    with pytest.raises(FairsamError, match="no tensor requires gradients"):
        FairSAM([torch.zeros(2)], None)
    with pytest.raises(FairsamError, match="apply=True needs an optimizer"):
        FairSAM(model.parameters(), None).step(gradients.on(x, y))
    grouped = FairSAM(model.parameters(), optimizer, perturbation="per_group", rho=(0.1,))
    with pytest.raises(FairsamError, match="groups=None"):
        grouped.step(gradients.on(x, y))
    with pytest.raises(FairsamError, match="has 1 values but the batch holds group 1"):
        grouped.step(gradients.on(x, y), groups=s)
    with pytest.raises(FairsamError, match=r"one gradient per parameter \(5\), got 3"):
        step.step(ModelGradients(model, CE, list(model.parameters())[:3]).on(x, y))
    with pytest.raises(FairsamError, match="reduction='none'"):
        step.step(ModelGradients(model, nn.CrossEntropyLoss()).on(x, y))
    with pytest.raises(FairsamError, match="do not fit"):
        step.step(gradients.on(x, y, weights=torch.ones(3)))
