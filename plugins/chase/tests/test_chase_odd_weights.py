"""Weights that are not weights: parametrized, computed, tied or read twice; weights without gradients; MACs of all."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from plait_chase.chase import Chase
from plait_chase.errors import ChaseError
from plait_chase.flops import computed_weights, dense_macs, layer_costs, sparse_macs
from plait_chase.groups import find_channel_groups

X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Net(nn.Module):
    """a -> b -> c, with something odd at ``b`` or beside it."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.odd = odd
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 8, 1)
        self.head, self.other = nn.Linear(8, 3), nn.Linear(8, 5)
        self.branch = nn.Linear(8, 8)
        self.calls = 0
        if odd == "tied":
            self.c.weight = self.d.weight
        if odd == "frozen":
            self.b.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        if self.odd == "pool":
            x = nn.MaxPool2d(2)(x)
        x = torch.relu(self.c(x))
        if self.odd == "twice":
            x = F.conv2d(x, self.b.weight, padding=1)
        if self.odd == "kept":
            self.kept = x
        x = torch.relu(self.d(x)).mean((2, 3))
        if self.odd == "penalty":
            x = x + self.b.weight.mean()
        if self.odd == "branch" and self.training:
            self.calls += 1
            if self.calls % 2:
                x = x + self.branch(x)
        return (self.head(x), self.other(x)) if self.odd == "two" else self.head(x)


def chase_of(model: nn.Module, steps: int = 12, **options: Any) -> Chase:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    settings = {"density": 0.4, "channel_sparsity": 0.5, "exploration_interval": 2, "channel_interval": 2, **options}
    return Chase(model, optimizer, steps, **settings)


def train(chase: Chase, steps: int = 12, first: int = 0) -> None:
    for _ in range(first, steps):
        chase.optimizer.zero_grad()
        out = chase.model(X)
        F.cross_entropy(out[0] if isinstance(out, tuple) else out, Y).backward()
        chase.optimizer.step()
        chase.step()


def assert_exact(chase: Chase) -> nn.Module:
    small = chase.shrink().eval()
    with torch.no_grad():
        want, got = chase.model.eval()(X), small(X)
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (want, got)), strict=True):
        assert (a - b).abs().max() < 1e-5
    return small


# ---- tied, and read twice ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("example", [None, X[:2]])
@pytest.mark.parametrize(
    ("odd", "left"),
    [
        ("", ["a", "b", "c"]),
        ("pool", ["a", "b", "c"]),
        ("kept", ["a", "b", "c"]),
        ("penalty", ["c"]),
        ("twice", []),
        ("tied", ["a"]),
    ],
)
def test_groups_of_tied_and_doubly_read_weights_are_left_alone(odd: str, left: list[str], example: Any) -> None:
    model = Net(odd)
    if not left:
        with pytest.raises(ChaseError, match="no prunable channel group"):
            find_channel_groups(model, example)
        return
    assert [g.producer for g in find_channel_groups(model, example)] == left
    chase = chase_of(model, example_input=example)
    train(chase)
    assert_exact(chase)
    assert chase.engine.alive_channels < chase.engine.channels
    deepcopy(model.state_dict())
    assert not any(isinstance(v, torch.fx.Proxy) for v in vars(model).values())


def test_declared_groups_that_cannot_be_sliced_are_refused_before_training() -> None:
    model = Net("tied")
    model.channel_groups = lambda: [("b", None, ("c",))]  # type: ignore[assignment]
    with pytest.raises(ChaseError, match="tied"):
        find_channel_groups(model)
    with pytest.raises(ChaseError, match="tied"):
        chase_of(model)
    model = Net()
    parametrizations.weight_norm(model.b)
    model.channel_groups = lambda: [("a", None, ("b",))]  # type: ignore[assignment]
    with pytest.raises(ChaseError, match="'b' is parametrized"):
        chase_of(model)


def test_a_tied_weight_goes_by_any_of_its_names() -> None:
    chase = chase_of(Net("tied"), exclude=["d.weight"])
    assert "c.weight" not in chase.masks


@pytest.mark.parametrize("error", [NameError, KeyError, AssertionError, RecursionError])
def test_whatever_tracing_raises_is_said_in_words(error: type[Exception]) -> None:
    class Stranger(Net):
        def forward(self, x: Tensor) -> Any:
            if isinstance(x, torch.fx.Proxy):
                raise error
            return super().forward(x)

    with pytest.raises(ChaseError, match=f"cannot trace Stranger .{error.__name__}.*example_input"):
        find_channel_groups(Stranger())
    assert {g.producer for g in find_channel_groups(Stranger(), X[:2])} == {"a", "b", "c"}

    class Broken(Net):
        def forward(self, x: Tensor) -> Any:
            raise error

    with pytest.raises(ChaseError, match=f"does not run on the example input: {error.__name__}"):
        find_channel_groups(Broken(), X[:2])


# ---- parametrized, and computed in the forward pass ----------------------------------------------------------------
class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean()


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Equalised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, self.bias, padding=self.padding)


def legacy(function: Any) -> Any:
    def apply(module: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(module)

    return apply


PARAMETRIZED = {
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "stranger": lambda module: parametrize.register_parametrization(module, "weight", Halved()),
    "old weight": legacy(nn.utils.weight_norm),
    "old spectral": legacy(nn.utils.spectral_norm),
    "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.parametrize("example", [None, X[:2]])
@pytest.mark.parametrize("kind", list(PARAMETRIZED))
def test_parametrized_layers_are_left_alone(kind: str, example: Any) -> None:
    model = Net()
    PARAMETRIZED[kind](model.b)
    plain = dense_macs(layer_costs(Net(), X[:2]))
    assert dense_macs(layer_costs(model, X[:2])) == plain
    chase = chase_of(model, example_input=example)
    assert not any(name.startswith("b.") for name in chase.masks)
    assert [g.producer for g in chase.engine.groups] == ["c"]
    assert any("parametrized" in note for note in chase.report()["notes"])
    train(chase)
    nnz = {n: int(p.count_nonzero()) for n, p in model.named_parameters() if n in chase.engine.names}
    assert nnz == chase.engine.nnz() and bool(model.b.weight.any())
    assert_exact(chase)


@pytest.mark.parametrize(("layer", "owned"), [(Standardised, False), (Equalised, True)])
def test_weights_that_the_forward_pass_computes_are_left_alone(layer: Any, owned: bool) -> None:
    model = Net()
    model.b = layer(8, 8, 3, padding=1)
    assert computed_weights(model, X[:2]) == (set() if owned else {"b.weight"})
    assert dense_macs(layer_costs(model, X[:2])) == dense_macs(layer_costs(Net(), X[:2]))
    for example in (X[:2], None):
        chase = chase_of(deepcopy(model), example_input=example)
        assert ("b.weight" in chase.masks) == owned
        assert [g.producer for g in chase.engine.groups] == ["c"]
        train(chase)
        assert_exact(chase)


# ---- without gradients ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channel_sparsity", [0.0, 0.4])
@pytest.mark.parametrize("example", [None, X[:2]])
@pytest.mark.parametrize(("odd", "alone"), [("frozen", "b"), ("two", "other"), ("branch", "branch"), ("", "other")])
def test_weights_without_gradients_are_left_alone(odd: str, alone: str, example: Any, channel_sparsity: float) -> None:
    model = Net(odd)
    if odd == "branch":
        model.calls = 1  # the branch is not taken at first
    before = deepcopy(model.get_submodule(alone).state_dict())
    chase = chase_of(model, channel_sparsity=channel_sparsity, example_input=example)
    train(chase, 1)
    for name, value in model.get_submodule(alone).state_dict().items():
        assert torch.equal(value, before[name])
    assert f"{alone}.weight" not in chase.masks
    train(chase, 12, 1)
    total = sum(p.numel() for n, p in model.named_parameters() if n in chase.masks and p.ndim > 1)
    assert chase.engine.total == total
    room = sum(chase.engine.layout.capacity().values())
    assert sum(chase.engine.nnz().values()) == min(room, chase.engine.budget) and chase.engine.budget == int(
        0.4 * total
    )
    assert_exact(chase)


def test_masks_drawn_anew_are_those_of_the_smaller_choice() -> None:
    """Oracle: the run that excludes the unreached head from the start."""
    late, early = (chase_of(Net("two"), channel_sparsity=0.0, exclude=e) for e in ([], ["other.*", "branch.*"]))
    start = {n: p.detach().clone() for n, p in Net("two").named_parameters()}
    late.optimizer.zero_grad()
    F.cross_entropy(late.model(X)[0], Y).backward()
    late.optimizer.step()
    late.step()
    assert set(late.masks) == set(early.masks)
    for name, mask in early.masks.items():
        assert torch.equal(late.masks[name], mask)
    assert torch.equal(late.model.other.weight, start["other.weight"])


def test_frozen_weights_are_owned_when_asked_for() -> None:
    chase = chase_of(Net("frozen"), channel_sparsity=0.0, include=["b.*", "c.*"])
    assert set(chase.masks) == {"b.weight", "c.weight"}
    train(chase)
    assert chase.engine.nnz()["b.weight"] < chase.model.b.weight.numel()


@pytest.mark.parametrize("name", ["b.weight", "c.*"])
def test_exclude_keeps_the_whole_group(name: str) -> None:
    model = Net()
    chase = chase_of(model, exclude=[name])
    assert [g.producer for g in chase.engine.groups] == (["c"] if name == "b.weight" else ["a"])
    train(chase)
    small = assert_exact(chase)
    assert bool(model.get_parameter("b.weight" if name == "b.weight" else "c.weight").all())
    assert small.b.out_channels == 8
    with pytest.raises(ChaseError, match="no prunable channel group"):
        chase_of(Net(), exclude=["b.*", "c.*"])


def test_a_branch_that_a_growth_step_does_not_take_stays_as_it_is() -> None:
    model = Net("branch")  # taken at steps 1, 3, ..., explored at 2, 4, ...
    chase = chase_of(model, channel_sparsity=0.0)
    assert "branch.weight" in chase.masks
    train(chase, 1)  # the unused head is given back, and the masks are drawn anew
    mask = chase.masks["branch.weight"].clone()
    train(chase, 9, 1)
    assert torch.equal(chase.masks["branch.weight"], mask)
    train(chase, 12, 9)
    assert sum(chase.engine.nnz().values()) == chase.engine.budget
    assert any("had no gradient" in note for note in chase.report()["notes"])


def test_resume_knows_what_was_given_back() -> None:
    whole = chase_of(Net("two"))
    train(whole)
    first = chase_of(Net("two"))
    train(first, 5)
    saved = deepcopy((first.state_dict(), first.model.state_dict(), first.optimizer.state_dict()))
    second = chase_of(Net("two"))
    second.load_state_dict(saved[0])
    second.model.load_state_dict(saved[1])
    second.optimizer.load_state_dict(saved[2])
    train(second, 12, 5)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_lazy_layers_are_refused_in_words() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ChaseError, match="lazy layer"):
        Chase(model, torch.optim.SGD(model[1].parameters(), 0.1), 12, channel_sparsity=0.0)
    with pytest.raises(ChaseError, match=r"lazy layer.*run a batch"):
        find_channel_groups(model)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.LazyBatchNorm2d(affine=False), nn.Conv2d(8, 8, 3))
    with pytest.raises(ChaseError, match=r"'1.running_mean' has no shape yet"):
        chase_of(model)


# ---- MACs ----------------------------------------------------------------------------------------------------------
def macs_of_torch(model: nn.Module, *inputs: Any) -> int:
    """Oracle: torch's counter, with attention by its products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 64),
        ("resnet18", 32),
        ("squeezenet1_1", 32),
        ("mobilenet_v3_small", 32),
        ("shufflenet_v2_x0_5", 32),
        ("densenet121", 32),
        ("efficientnet_b0", 32),
        ("regnet_y_400mf", 32),
        ("mnasnet0_5", 32),
        ("convnext_tiny", 32),
        ("swin_t", 32),
        ("swin_v2_t", 32),
    ],
)
def test_macs_of_torchvision_agree_with_torchs_counter(name: str, size: int) -> None:
    model = torchvision.models.get_model(name, weights=None)
    x = torch.randn(2, 3, size, size)
    assert dense_macs(layer_costs(model, x)) == macs_of_torch(model, x[:1])


class Attention(nn.Module):
    def __init__(self, cross: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.cross = cross

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x[:, :2] if self.cross else x, x, x)[0]
        return out


def test_macs_of_attention_by_hand() -> None:
    x = torch.randn(3, 8, 16)
    costs = layer_costs(Attention(), x)
    assert {n: c.macs for n, c in costs.items()} == {
        "attention.in_proj_weight": 8 * 16 * 48,
        "(activations)": 2 * 8 * 8 * 16,
        "attention.out_proj.weight": 8 * 16 * 16,
    }
    # an encoder layer, and a decoder's cross attention, whose packed weight is read in parts
    assert dense_macs(layer_costs(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), x)) == (
        8 * 16 * 64 + 2 * 8 * 8 * 16 + 2 * 8 * 16 * 32
    )
    cross = layer_costs(Attention(cross=True), x)
    assert cross["attention.in_proj_weight"].macs == 2 * 16 * 16 + 8 * 16 * 32
    assert sparse_macs(costs, {"attention.in_proj_weight": 10}) == dense_macs(costs) - 8 * 16 * 48 + 80


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 16)
        self.tied = nn.Linear(16, 10, bias=False)
        self.tied.weight = self.table.weight
        self.bare = nn.Parameter(torch.randn(16, 16))
        self.vector = nn.Parameter(torch.randn(16))
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.kernel = nn.Parameter(torch.randn(16, 16, 3))

    def forward(self, tokens: Tensor) -> Any:
        x = self.table(tokens)
        x = x @ self.bare + torch.einsum("bti,io->bto", x, self.bare)
        x = F.conv1d(x.transpose(1, 2), self.kernel, padding=1).transpose(1, 2)
        x = self.rnn(x)[0]
        return self.tied(x), F.linear(x, self.bare[:4]), x @ self.vector


def test_macs_of_functional_tied_and_recurrent_weights_by_hand() -> None:
    costs = layer_costs(Functional(), torch.zeros(3, 6, dtype=torch.int64))
    assert {n: c.macs for n, c in costs.items()} == {
        "bare": 6 * (2 * 256 + 64),
        "kernel": 6 * 16 * 16 * 3,
        "rnn.weight_ih_l0": 6 * 64 * 16,
        "rnn.weight_hh_l0": 6 * 64 * 16,
        "table.weight": 6 * 160,
        "vector": 6 * 16,
    }


def test_counting_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    class Counting(Net):
        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return super().forward(F.dropout(x, 0.1))

    model = Counting().train()
    state = torch.get_rng_state()
    layer_costs(model, X[:2])
    assert model.calls == 0 and model.training and torch.equal(torch.get_rng_state(), state)


# ---- wrappers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrap", ["compiled", "parallel", "compiled and parallel"])
@pytest.mark.parametrize("shrink_during", [False, True])
def test_wrapped_models_are_taken_out_of_their_wrappers(wrap: str, shrink_during: bool) -> None:
    plain, wrapped = Net(), Net()
    wrapped.load_state_dict(plain.state_dict())
    module: nn.Module = wrapped
    if wrap != "parallel":
        module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    if wrap != "compiled":
        module = nn.DataParallel(module)
    chases = [chase_of(model, shrink_during=shrink_during, example_input=X[:2]) for model in (plain, module)]
    assert list(chases[1].masks) == list(chases[0].masks) and chases[1].model is wrapped
    for chase, model in zip(chases, (plain, module), strict=True):
        for _ in range(12):
            chase.optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()  # the wrapper goes on being called
            chase.optimizer.step()
            chase.step()
        assert_exact(chase)
    for name, mask in chases[0].masks.items():
        assert torch.equal(mask, chases[1].masks[name])
    assert chases[1].report()["macs_shrunk"] == chases[0].report()["macs_shrunk"]
    assert list(chases[1].shrink().state_dict()) == list(plain.state_dict())
    assert find_channel_groups(module) == find_channel_groups(plain)


def test_scripted_models_are_refused_in_words() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = [torch.jit.script(model), torch.jit.trace(model, X)]
    for each in scripted:
        for options in ({}, {"channel_sparsity": 0.0}):
            with pytest.raises(ChaseError, match=r"the model is scripted .*made from"):
                chase_of(each, **options)
        with pytest.raises(ChaseError, match="scripted"):
            find_channel_groups(each)
