"""The files of examples/cluster: valid shell, valid YAML with what the API requires, commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
TORCHRUN = {"--nnodes", "--nproc-per-node", "--max-restarts", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}
REQUIRED = {
    "ConfigMap": ("v1", ["data"]),
    "Service": ("v1", ["spec.selector", "spec.clusterIP"]),
    "Job": ("batch/v1", ["spec.template.spec.containers", "spec.template.spec.restartPolicy", "spec.completionMode"]),
    "RayJob": ("ray.io/v1", ["spec.entrypoint", "spec.rayClusterSpec.headGroupSpec.template.spec.containers"]),
}


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def at(document: dict[str, Any], place: str) -> Any:
    value: Any = document
    for key in place.split("."):
        value = value[key]
    return value


def words(path: Path) -> Iterator[list[str]]:
    """Every torchrun or plait command of a file, as words."""
    if path.suffix == ".sh":
        joined = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in joined.splitlines() if not line.startswith("#")]
        yield from (shlex.split(line) for line in lines if re.search(r"\b(plait|torchrun) ", line))
        return
    for document in documents(path):
        if document["kind"] == "Job":
            yield at(document, "spec.template.spec.containers")[0]["command"]
        if document["kind"] == "RayJob":
            yield shlex.split(document["spec"]["entrypoint"])


def test_there_are_examples_of_both() -> None:
    assert [p.name for p in SCRIPTS] == ["slurm-sweep.sh", "slurm.sh"]
    assert [p.name for p in MANIFESTS] == ["kubernetes-sweep.yaml", "kubernetes.yaml"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_shell(path: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first  # sbatch reads no further


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_are_valid(path: Path) -> None:
    for document in documents(path):
        version, places = REQUIRED[document["kind"]]
        assert document["apiVersion"] == version
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
        for place in places:
            assert at(document, place)
    kinds = {d["kind"]: d for d in documents(path)}
    if "Job" in kinds:
        job = kinds["Job"]["spec"]
        pod = job["template"]["spec"]
        assert job["completions"] == job["parallelism"] == int(pod["containers"][0]["command"][1].partition("=")[2])
        assert pod["subdomain"] == kinds["Service"]["metadata"]["name"]
        assert kinds["Service"]["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()
        mounts = {m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts == {v["name"] for v in pod["volumes"]}
        import plait

        plait.Recipe.parse(tomllib.loads(kinds["ConfigMap"]["data"]["recipe.toml"]))


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda p: p.name)
def test_commands_have_only_options_that_exist(path: Path) -> None:
    from plait_cli.commands.run import run
    from plait_cli.groups import build
    from plait_experiments.commands.sweep import sweep

    commands = list(words(path))
    assert commands
    for command in commands:
        if "plait_cli" in command:
            launcher, arguments = command[: command.index("plait_cli")], command[command.index("plait_cli") + 1 :]
            own = {word.partition("=")[0] for word in launcher if word.startswith("--")} - {"--kill-on-bad-exit"}
            assert own <= TORCHRUN
            assert launcher[-1] == "-m"
        else:
            arguments = command[command.index("plait") + 1 :]
        function = {"run": run, "sweep": sweep}[arguments[0]]
        known = {name for option in build(function, arguments[0]).params for name in option.opts}
        assert {word for word in arguments if word.startswith("--")} <= known
        if arguments[0] == "sweep":
            from plait_experiments.grid import parse_all

            assert parse_all([arguments[n + 1] for n, word in enumerate(arguments) if word == "--over"])
