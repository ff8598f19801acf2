"""The package: light to import, its README true, and a graph of PubMed's size in memory that grows with the edges."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import plait
from plait_glt.auxiliary import auxiliary_loss
from plait_glt.graphs import make_graph
from plait_glt.masked import MaskedGNN
from plait_glt.models import GCN

ROOT = Path(__file__).parents[1]


def test_importing_the_package_or_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, plait_glt, plait_glt.plugin; assert not {'torch', 'numpy', 'torch_geometric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    scope: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_the_readmes_metrics_are_those_of_a_run(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    options = {"rounds": 2, "p_g": 0.5, "mask_epochs": 3, "fix_epochs": 2, "warmup": 0}
    trained = plait.run(plugins={"glt": options}, data="karate", model="gcn", out=tmp_path / "run").details
    reported = {}
    for name, detail in trained.items():
        owner, _, metric = name.partition("@")[0].partition("/")
        if owner == "glt":
            reported[re.sub(r"_round_\d+$", "_round_K", metric)] = (detail["unit"], detail["better"])
    assert {row[0].strip("`"): (row[1], row[2]) for row in rows} == reported


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc")
def test_a_graph_of_pubmeds_size_takes_memory_by_its_edges() -> None:
    """Two dense [n, n] masks would take 3 GB."""
    n, generator = 19_717, torch.Generator().manual_seed(0)
    graph = make_graph(
        torch.rand(n, 64, generator=generator),
        torch.randint(n, (2, 44_324), generator=generator),
        torch.randint(3, (n,), generator=generator),
    )
    gnn = MaskedGNN(GCN(64, 3, 16), graph.edge_index, n)
    assert gnn.edge_mask.numel() == graph.edge_index.shape[1] // 2
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    logits = gnn(graph.x, graph.edge_index)
    auxiliary = auxiliary_loss(logits.softmax(1), generator=generator)
    (cross_entropy(logits[:60], graph.y[:60]) + auxiliary.loss).backward()
    assert gnn.edge_mask.grad is not None and bool((gnn.edge_mask.grad != 0).any())
    assert peak() - before < 300, "MiB"


def peak() -> float:
    """Largest resident memory so far, MiB."""
    line = next(part for part in Path("/proc/self/status").read_text().splitlines() if part.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
