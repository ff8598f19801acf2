"""`plait doctor`, the machine: the command on the PATH, devices, runs of this folder, and the package index."""

from __future__ import annotations

import http.server
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_site import GOOD, Site, answering, finding_of, findings_of, site_fixture  # noqa: F401
from filelock import FileLock

from plait_doctor import hardware
from plait_doctor.finding import Case, Finding
from plait_doctor.probe import Probe


# ---- the command -------------------------------------------------------------------------------------------------
def test_the_command_of_another_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(own))
    assert finding_of("environment:command", "command").status == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    lost = finding_of("environment:command", "command")
    assert lost.status == "warning" and "not on the PATH" in lost.found and f"{sys.executable} -m plait_cli" in lost.fix
    other = tmp_path / "plait"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    foreign = finding_of("environment:command", "command")
    assert foreign.status == "warning" and foreign.found == f"`plait` on the PATH is {other}"


# ---- devices -----------------------------------------------------------------------------------------------------
TORCH = {"version": "2.9.0", "cuda": None, "hip": None, "threads": 1, "visible": None, "warnings": []}
CPU = {"device": "cpu", "error": "", "bf16": ""}
GPU = {"device": "cuda:0", "error": "", "bf16": "", "name": "NVIDIA X", "memory": 8 * 2**30, "free": 4 * 2**30}


def judged(card: bool = False, driver: bool = False, **answer: Any) -> dict[str, Finding]:
    document = {**TORCH, "devices": [CPU], **answer}
    return {finding.name: finding for finding in hardware.judge_torch(document, card=card, driver=driver)}


def test_devices_are_judged_by_what_torch_can_do() -> None:
    assert judged()["gpu"].status == "ok" and "runs use the CPU" in judged()["gpu"].found
    both = judged(cuda="13.0", devices=[CPU, GPU], driver=True, card=True)
    assert "gpu" not in both and both["cuda:0"].found == "NVIDIA X, 4.0 GiB of 8.0 GiB free, works"
    broken = judged(cuda="13.0", devices=[CPU, {"device": "cuda:0", "error": "RuntimeError: no kernel", "bf16": ""}])
    assert broken["cuda:0"].status == "problem" and "no kernel" in broken["cuda:0"].found
    assert "--device cpu" in broken["cuda:0"].why
    assert judged(cuda="13.0")["gpu"].status == "ok" and "does no harm" in judged(cuda="13.0")["gpu"].found
    assert judged(card=True)["gpu"].status == "warning" and "no driver" in judged(card=True)["gpu"].found
    wheel = judged(card=True, driver=True)["gpu"]
    assert wheel.status == "warning" and "built without CUDA" in wheel.found
    old = judged(cuda="13.0", driver=True, warnings=["The NVIDIA driver on your system is too old"])["gpu"]
    assert old.status == "problem" and "too old" in old.found
    hidden = judged(cuda="13.0", driver=True, visible="")["gpu"]
    assert hidden.status == "ok" and hidden.fix == "unset CUDA_VISIBLE_DEVICES"
    (failed,) = hardware.judge_torch({"failed": "ImportError: libx.so"}, card=False, driver=False)
    assert failed.status == "problem" and "libx.so" in failed.found


def test_cards_and_quotas_are_read_off_the_system(tmp_path: Path) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")  # the sound of a graphics card
    assert not hardware.has_card(tmp_path)
    (device / "class").write_text("0x030000\n")
    assert hardware.has_card(tmp_path) and not hardware.has_card(tmp_path / "none")
    for text, cores in (("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert hardware.cpu_quota(tmp_path / "cpu.max") == cores


def test_probes_survive_whatever_their_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Probe("x", "print('noise')\nfound = {'a': 1}\nprint('more')").result() == {"a": 1}
    assert Probe("x", "import no_such_library").result()["failed"].endswith("No module named 'no_such_library'")
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    assert "ended by signal 11" in Probe("x", killed).result()["failed"]
    assert "exit" not in Probe("x", "found = {}\nraise SystemExit(3)").result().get("failed", "exit")
    start = time.monotonic()
    assert "was not done after 1 s" in Probe("x", "import time\ntime.sleep(60)").result(timeout=1)["failed"]
    assert time.monotonic() - start < 30


def test_a_torchvision_of_another_build(site: Site) -> None:
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    site("torchvision", "0.21.0", files={"torchvision/__init__.py": text})
    site("torch", "2.6.0+cpu")
    case = Case(Path.cwd(), torch=answering(version="2.6.0+cpu"))
    finding = finding_of("hardware:torchvision", "torchvision", case)
    assert finding.status == "problem" and "RuntimeError: operator torchvision::nms does not exist" in finding.found
    assert "--index-url https://download.pytorch.org/whl/cpu" in finding.fix and "PyPI's torchvision" in finding.why


def test_threads_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert finding_of("hardware:processor", "processor", Case(Path.cwd(), torch=answering(threads=1))).status == "ok"
    many = finding_of("hardware:processor", "processor", Case(Path.cwd(), torch=answering(threads=4096)))
    assert many.status == "warning" and re.fullmatch(r"export OMP_NUM_THREADS=\d+", many.fix)
    monkeypatch.setenv("OMP_NUM_THREADS", "lots")
    wrong = finding_of("hardware:processor", "processor", Case(Path.cwd(), torch=answering(threads=1)))
    assert wrong.status == "warning" and "not a number" in wrong.why


def test_memory_and_disk_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    memory = finding_of("hardware:memory", "memory")
    assert 0 < memory.details["free"] <= memory.details["total"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    disk = {finding.name: finding for finding in findings_of("hardware:disk", Case(tmp_path))}
    assert disk["cache"].details["folder"] == str(tmp_path / "not/yet/plait") and not (tmp_path / "not").exists()
    assert disk["disk"].details["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    monkeypatch.setattr(hardware, "LITTLE_DISK", 2**62)
    assert finding_of("hardware:disk", "disk", Case(tmp_path)).status == "warning"
    monkeypatch.setattr(hardware, "NO_DISK", 2**62)
    assert finding_of("hardware:disk", "disk", Case(tmp_path)).status == "problem"


# ---- runs --------------------------------------------------------------------------------------------------------
def test_runs_of_this_folder(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert "no runs in" in finding_of("folder:runs", "runs", case).found
    for name in ("whole", "torn", "held"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text("seed = 1\n" if name != "torn" else "seed = = 1\n")
        (folder / "metrics.jsonl").write_text('{"event": "scalars", "step": 3}\n')
    held = tmp_path / "runs" / "held"
    os.utime(held / "metrics.jsonl", (time.time() - 3 * 86400,) * 2)
    with FileLock(held / ".lock"):
        stuck, torn, count = findings_of("folder:runs", case)
    assert torn.status == "warning" and "torn cannot be read" in torn.found and "not valid TOML" in torn.found
    assert stuck.status == "warning" and "nothing was written to it for 72 hours" in stuck.found
    assert "fuser -v" in stuck.fix
    assert count.details == {"finished": 0, "running": 1, "interrupted": 1, "failed": 0, "damaged": 1}
    assert count.status == "ok" and count.fix.endswith(f"plait resume {tmp_path / 'runs/whole'}")
    statuses = [finding.status for finding in findings_of("folder:runs", case)]
    assert statuses == ["warning", "ok"], "a free lock is no lock"
    itself = findings_of("folder:runs", Case(held))
    assert itself[-1].details["interrupted"] == 1


# ---- the index ---------------------------------------------------------------------------------------------------
@pytest.fixture
def index() -> Iterator[tuple[str, dict[str, Any]]]:
    """An index at an address, and what it answers: distribution -> document, text, or nothing (404)."""
    answers: dict[str, Any] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.strip("/").split("/")[0])
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            if answer is not None:
                self.wfile.write((answer if isinstance(answer, str) else json.dumps(answer)).encode())

        def log_message(self, *_: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answers
    server.shutdown()
    server.server_close()


def test_releases_are_asked_for_only_online(
    site: Site, index: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    address, answers = index
    for name in ("late", "new", "foreign", "lone"):
        files = {f"{name}_rel.py": GOOD.format(name=name)}
        site(f"plait-{name}", "1.2", plugins={name: f"{name}_rel:{name}"}, files=files, metadata="Author: We\n")
    answers["plait-late"] = {"info": {"version": "1.10", "author": "We"}}
    answers["plait-new"] = {"info": {"version": "1.2", "author": "We"}}
    answers["plait-foreign"] = {"info": {"version": "9.0", "author": "Somebody"}}
    assert findings_of("index:releases", Case(tmp_path, False, address)) == []
    findings = {finding.name: finding for finding in findings_of("index:releases", Case(tmp_path, True, address))}
    late = findings["plait-late release"]
    assert late.status == "warning" and "1.2 is out of date: 1.10 is out" in late.found
    assert late.fix == "pip install -U plait-late"
    new = findings["plait-new release"]
    assert new.status == "ok" and new.found == "1.2, the newest is 1.2"
    foreign = findings["plait-foreign release"]
    assert foreign.status == "ok" and not foreign.fix and "by Somebody, not by We" in foreign.found
    assert findings["plait-lone release"].found == findings["plait-core release"].found == "not on PyPI"
    answers["plait-core"] = "<html>a login page</html>"
    first, second, *_ = findings_of("index:releases", Case(tmp_path, True, address))
    assert first.status == "warning" and "cannot be read" in first.found and second.found.startswith("not asked")
    closed = findings_of("index:releases", Case(tmp_path, True, "http://127.0.0.1:9"))
    assert closed[0].status == "warning" and closed[0].found.startswith("no connection")
    assert all(finding.status == "ok" for finding in closed[1:]), "one is enough"
