"""Symbolic analysis, the memory plan executed in one buffer, and every runtime against PyTorch."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plait_dydca.bodies import EDSR, ESPCN, WDSR, folded
from plait_dydca.errors import DydcaError
from plait_dydca.memory import execute, lifetimes, plan_memory
from plait_dydca.network import RoutedNetwork
from plait_dydca.runtimes import RUNTIMES, available, build, difference, random_shapes
from plait_dydca.symbolic import analyse, node_table, operator_class

# torch.compile before a process's first backward pass makes that pass start threads, after which no fork can train: the
# conformance runs of this suite are forks
torch.zeros(1, requires_grad=True).sum().backward()

BODIES = [WDSR(2, 2, 8), WDSR(3, 1, 8), EDSR(2, 1, 8), ESPCN(4, 1, 8)]


def test_every_size_is_a_constant_times_the_pixels() -> None:
    analysis = analyse(WDSR(2, 1, 8))
    assert analysis.output == "add_2"
    assert {node.kind for node in analysis.nodes} == {"ISDOS"}
    shapes = {node.name: (node.shape, node.bytes_per_pixel) for node in analysis.nodes}
    assert shapes["conv2d_1"] == (("b", "16", "h", "w"), 64)
    assert shapes["pixel_shuffle"] == (("b", "3", "2*h", "2*w"), 48)
    table = node_table(analysis)
    assert table.rows[0] == ["sub", "sub", "ISDOS", "b x 3 x h x w", 12]


def test_operators_by_what_fixes_their_output() -> None:
    aten = torch.ops.aten
    assert operator_class(aten.conv2d.default) == "ISDOS"
    assert operator_class(aten.zeros_like.default) == "ISDO"
    assert operator_class(aten.view.default) == "ISVDOS"
    assert operator_class(aten.nonzero.default) == "EDO"


def test_a_path_that_decides_by_values_is_refused() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.nonzero(x).shape[0] * 0 + x.masked_select(x > 0.5).sum()

    with pytest.raises(DydcaError, match="decides by values"):
        analyse(nn.Sequential(nn.Conv2d(3, 3, 1), Picky()))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("body", BODIES, ids=lambda b: f"{type(b).__name__}x{b.scale}")
def test_a_plan_is_valid_and_runs_in_one_buffer(body: nn.Module, fused: bool) -> None:
    analysis = analyse(body)
    plan = plan_memory(analysis, fused=fused)
    for a, b in itertools.combinations(plan.buffers, 2):  # no two that live together overlap
        if a.first <= b.last and b.first <= a.last:
            start, other = plan.offsets[a.name], plan.offsets[b.name]
            assert start + a.size <= other or other + b.size <= start
    assert plan.live <= plan.arena <= 1.25 * plan.live
    assert plan.arena <= plan.without_reuse
    for shape in ((1, 3, 5, 7), (3, 3, 12, 16)):
        x = torch.rand(shape)
        with torch.no_grad():
            wanted = folded(body).eval()(x)
        got = execute(analysis, plan, x)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        start = got.untyped_storage().data_ptr()
        assert got.untyped_storage().nbytes() == plan.bytes(shape[0], *shape[2:])
        assert start <= got.data_ptr() < start + plan.bytes(shape[0], *shape[2:])


def test_the_memory_figures_of_the_card() -> None:
    """x4, B = 4, U = 32, float32, bytes a low-resolution pixel."""
    analysis = analyse(WDSR(4, 4, 32))
    plain, fused = plan_memory(analysis, fused=False), plan_memory(analysis, fused=True)
    assert (plain.without_reuse, plain.live, plain.arena) == (4172, 652, 780)
    assert (fused.live, fused.arena) == (524, 524)
    buffers, writer = lifetimes(analysis, fused=True)
    assert len(buffers) < len(analysis.nodes)
    assert writer["relu"] == "conv2d_1"


def network() -> RoutedNetwork:
    """A path of each scale: pixel shuffles are where exporters went wrong."""
    torch.manual_seed(0)
    return RoutedNetwork([WDSR(2, 2, 8), WDSR(3, 1, 8), WDSR(4, 1, 4)])


COMPILERS = {"aoti", "inductor"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in COMPILERS)) for n in available()])
def test_a_runtime_equals_pytorch_over_random_shapes(name: str, tmp_path: Path) -> None:
    net = network()
    runtime = build(name, net, tmp_path)
    shapes = [*random_shapes(8, seed=3), (1, 8, 8), (5, 33, 17)]
    assert difference(runtime, net, shapes) < (1e-5 if name == "onnxruntime" else 1e-4)
    programs = {path.stem for path in runtime.artefacts}  # one a path, for all shapes
    assert programs == (set() if name in ("eager", "inductor") else {"path-0", "path-1", "path-2"})


def test_what_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DydcaError, match=r"no runtime 'tvm'; known: eager, inductor"):
        build("tvm", network())
    if find_spec("executorch") is None:
        with pytest.raises(DydcaError, match=r"pip install 'plait-dydca\[executorch\]'"):
            build("executorch", network())
    monkeypatch.setitem(RUNTIMES, "openvino", (RUNTIMES["openvino"][0], ("no_such_package",)))
    assert "openvino" not in available()
    with pytest.raises(DydcaError, match=r"needs no_such_package: pip install 'plait-dydca\[openvino\]'"):
        build("openvino", network())


def test_a_compiler_that_fails_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: nn.Module, file: Path) -> None:
        raise RuntimeError("no compiler\nlong trace")

    monkeypatch.setitem(RUNTIMES, "aoti", (broken, ()))
    with pytest.raises(DydcaError, match=r"the runtime 'aoti' cannot build the paths: no compiler\.$"):
        build("aoti", network())
