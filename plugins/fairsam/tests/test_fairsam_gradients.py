"""Frozen statistics, nested inputs and the penalty in the engine for plain loops."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from plait_fairsam.errors import FairsamError
from plait_fairsam.gradients import ModelGradients, frozen_statistics
from plait_fairsam.sam import FairSAM

CE = nn.CrossEntropyLoss(reduction="none")


class MovingAverage(nn.Module):
    """Keeps a buffer by assignment, as careless modules do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
            self.count += 1
        return x


def test_every_kind_of_statistic_is_kept():
    model = nn.Sequential(
        nn.BatchNorm1d(4, momentum=None),
        MovingAverage(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, track_running_stats=True),
    )
    x = torch.randn(6, 4)
    model(x)
    before = {name: b.clone() for name, b in model.named_buffers()}
    held = model[1].mean
    with frozen_statistics(model):
        model(x + 3).sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert model[1].mean is held and model[0].momentum is None
    model(x + 3)
    assert any(not torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_frozen_batchnorm_still_normalises_by_the_batch_and_eval_mode_by_its_statistics():
    norm = nn.BatchNorm1d(3)
    x = torch.randn(8, 3) + 5
    with frozen_statistics(norm):
        assert torch.allclose(norm(x).mean(0), torch.zeros(3), atol=1e-5)
    norm.eval()
    with frozen_statistics(norm):
        assert torch.allclose(norm(x), x, atol=1e-3)
    assert norm.track_running_stats
    untracked = nn.BatchNorm1d(3, track_running_stats=False)
    with frozen_statistics(untracked):
        untracked(x)
    assert untracked.track_running_stats is False


class Drifting(nn.BatchNorm1d):
    """A stranger's subclass with state of its own, in a buffer and beside it."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("passes", torch.zeros(()))
        self.seen = 0

    def forward(self, x):
        self.passes, self.seen = self.passes + 1, self.seen + 1
        return super().forward(x)

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


STATEFUL = {
    "batch": lambda: nn.BatchNorm1d(4),
    "cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "untracked": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "instance": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True)),
    "lone instance": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "moving": MovingAverage,
    "strange": lambda: Drifting(4),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(STATEFUL))
def test_a_frozen_pass_computes_the_same_and_leaves_every_state(name, training):
    torch.manual_seed(0)
    model = STATEFUL[name]().train(training)
    x = torch.randn(6, 4)
    model(x - 1)
    twin = copy.deepcopy(model)
    kept = copy.deepcopy(model.state_dict())
    tracked = [getattr(m, "track_running_stats", None) for m in model.modules()]
    with frozen_statistics(model):
        frozen = model(x + 3)
        frozen.sum().backward() if frozen.requires_grad else None
    assert torch.equal(frozen, twin(x + 3))
    state = model.state_dict()
    assert state.keys() == kept.keys()
    for key, value in kept.items():
        assert torch.equal(state[key], value) if isinstance(value, torch.Tensor) else state[key] == value
    assert [getattr(m, "track_running_stats", None) for m in model.modules()] == tracked
    assert all(m.training == training for m in model.modules())


def test_inputs_may_be_nested_and_rows_are_taken_from_all_of_it():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, parts):
            return self.head(parts["a"] + parts["more"][0])

    torch.manual_seed(0)
    model, x, y = Sum(), torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    on = ModelGradients(model, CE).on({"a": x, "more": (2 * x,)}, y)
    rows = torch.tensor([4, 0])
    report = on(rows=rows, probe=True)
    assert torch.allclose(report.per_example, CE(model.head(3 * x[rows]), y[rows]))
    with pytest.raises(FairsamError, match="cannot take rows of str"):
        ModelGradients(model, CE).on("text", y)(rows=rows)


def test_the_penalty_is_added_to_the_objective():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y, s = torch.randn(8, 3), torch.randint(0, 2, (8,)), torch.arange(8) % 2
    report = ModelGradients(model, CE, penalty=0.7).on(x, y, groups=s)(weighted=False)
    losses = CE(model(x), y)
    expected = losses.mean() + 0.7 * (losses[s == 1].mean() - losses[s == 0].mean()).abs()
    assert float(report.loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    wanted = torch.autograd.grad(expected, [model.weight])[0]
    assert torch.allclose(model.weight.grad, wanted, atol=1e-6)
    with pytest.raises(FairsamError, match=r"penalty=0.7 needs"):
        ModelGradients(model, CE, penalty=0.7).on(x, y)
    with pytest.raises(FairsamError, match=r"penalty=-1"):
        ModelGradients(model, CE, penalty=-1)


def test_replay_without_a_first_pass_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(FairsamError, match="replay"):
        ModelGradients(model, CE).on(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))(replay=True)


def test_a_replay_leaves_the_stream_where_it_was():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    on = ModelGradients(model, CE).on(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    first = on()
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(on(replay=True).per_example, first.per_example)
    assert torch.equal(state, torch.get_rng_state())


def test_only_the_probe_runs_unsynchronised():
    entered = []

    class Parallel(nn.Linear):
        @contextmanager
        def no_sync(self):
            entered.append(True)
            yield

    model = Parallel(3, 2)
    on = ModelGradients(model, CE).on(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    on()
    assert not entered
    on(probe=True)
    assert entered == [True]


def test_a_data_parallel_model_does_not_synchronise_in_the_probe(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("no torch.distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        inner = nn.Linear(3, 2)
        model = nn.parallel.DistributedDataParallel(inner)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = FairSAM(model.parameters(), optimizer)
        sent = []

        def count(_, bucket):
            sent.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        losses = [float(step.step(ModelGradients(model, CE).on(x, y)).loss) for _ in range(5)]
        assert losses[-1] < losses[0]
        assert sent == [8] * 5  # once a step: what the probe finds stays here
    finally:
        torch.distributed.destroy_process_group()


def test_autocast_around_the_step_is_autocast_around_each_pass():
    x, y, ends = torch.randn(16, 8), torch.randint(4, (16,)), []
    for around in ("step", "pass"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        fairsam = FairSAM(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)

        def loss(outputs, targets):
            return CE(outputs.float(), targets)

        if around == "step":
            gradients = ModelGradients(model, loss).on(x, y)
            for _ in range(3):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    fairsam.step(gradients)
        else:
            gradients = ModelGradients(Cast(model), loss).on(x, y)
            for _ in range(3):
                fairsam.step(gradients)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Cast(nn.Module):
    """Opens an autocast of its own for each pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)
