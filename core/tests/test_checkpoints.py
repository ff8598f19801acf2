"""Checkpoints: bit-exact round trips, whole or not at all; damaged, foreign or malicious files refused unexecuted."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from plait.errors import BadCheckpoint, RunFailed
from plait.storage import checkpoints, files

leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=4), t, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(max_size=4), trees, max_size=3))
@settings(max_examples=50, deadline=None)
def test_plain_values_round_trip(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("c") / "x"
    checkpoints.save(path, tree)
    assert checkpoints.load(path) == tree


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_round_trip_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 5) * 10).to(dtype)
    tied = tensor.t()
    checkpoints.save(
        tmp_path / "x", {"a": [tensor, {"b": tied}], "empty": torch.zeros(0, 2, dtype=dtype), "scalar": tensor[0, 0]}
    )
    back = checkpoints.load(tmp_path / "x")
    assert torch.equal(back["a"][0], tensor) and torch.equal(back["a"][1]["b"], tied) and back["a"][0].dtype == dtype
    assert back["empty"].shape == (0, 2) and back["scalar"].shape == ()


def test_nan_and_infinity_round_trip(tmp_path: Path) -> None:
    checkpoints.save(
        tmp_path / "x", {"v": [float("inf"), float("-inf"), float("nan")], "t": torch.tensor([float("nan")])}
    )
    back = checkpoints.load(tmp_path / "x")
    assert (
        back["v"][:2] == [float("inf"), float("-inf")] and back["v"][2] != back["v"][2] and torch.isnan(back["t"]).all()
    )


def good(path: Path) -> bytes:
    checkpoints.save(path, {"w": torch.arange(100.0), "step": 7})
    return path.read_bytes()


def test_every_truncation_and_bit_flip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    content = good(path)
    for cut in [0, 1, 7, 8, 20, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(BadCheckpoint):
            checkpoints.load(path)
    for position in range(0, len(content), 3):
        broken = bytearray(content)
        broken[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(broken))
        try:
            assert checkpoints.load(path)["step"] == 7  # padding or the order of header keys may absorb a flip ...
            assert torch.equal(checkpoints.load(path)["w"], torch.arange(100.0))  # ... but never the content
        except BadCheckpoint:
            continue


def test_foreign_and_malicious_files_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    evil = tmp_path / "evil"
    evil.write_bytes(pickle.dumps(Payload()))
    torch.save({"w": Payload()}, tmp_path / "torch")
    save_file({"w": torch.zeros(2)}, tmp_path / "plain")
    save_file({"w": torch.zeros(2)}, tmp_path / "newer", {"plait-format": "99"})
    for name in ("evil", "torch", "plain", "newer", "none"):
        with pytest.raises(BadCheckpoint):
            checkpoints.load(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_unsupported_values_are_named_by_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/1"):
        checkpoints.save(tmp_path / "x", {"a": [1, object()]})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = good(path)

    def fails(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed, match="No space left"):
        files.write_atomically(path, fails)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_for_real(tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write, as a full disk does."""
    good(tmp_path / "x")
    code = (
        "import resource, signal, torch, sys; from pathlib import Path\n"
        "from plait import errors; from plait.storage import checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: checkpoints.save(Path(sys.argv[1]), {'w': torch.zeros(10000)})\n"
        "except errors.RunFailed as e: print('refused', e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert checkpoints.load(tmp_path / "x")["step"] == 7 and [p.name for p in tmp_path.iterdir()] == ["x"]
