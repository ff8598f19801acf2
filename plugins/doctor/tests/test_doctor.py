"""`plait doctor`, plugins and distributions: each finding against an environment of real dist-info folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_site import CONTRACT, GOOD, Site, finding_of, findings_of, site_fixture  # noqa: F401

import plait
from plait.errors import BadInput
from plait_doctor import examination


# ---- the examination ---------------------------------------------------------------------------------------------
@pytest.mark.smoke
def test_every_part_of_this_environment_is_looked_at_and_sound(tmp_path: Path) -> None:
    said: list[str] = []
    findings = examination.examine(folder=tmp_path, say=said.append)
    assert {finding.part for finding in findings} == set(examination.PARTS)
    assert [finding for finding in findings if finding.status == "problem"] == []
    assert examination.sound(findings) and len(said) == sum(len(paths) for paths in examination.EXAMINERS.values())
    names = {finding.name for finding in findings}
    assert {"python", "plait-core", "requirements", "torch", "cpu", "disk", "task", "data", "runs"} <= names
    document = json.loads(json.dumps(examination.document(findings)))
    assert document["ok"] is True and sum(document["counts"].values()) == len(document["checks"])


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(BadInput, match=r"no part 'plugin'\. Did you mean 'plugins'"):
        examination.examine(["plugin"])


def test_a_check_that_raises_is_reported_and_the_others_go_on(site: Site, tmp_path: Path) -> None:
    text = f"""
import plait
class odd(plait.Plugin):
    name, contract = "odd", {CONTRACT}
    @plait.hookimpl
    def data_sources(self): return {{"odd-data": plait.DataSource("x:y", "options that are none", options=None)}}
"""
    site("plait-odd", plugins={"odd": "odd_one:odd"}, files={"odd_one.py": text})
    findings = examination.examine(["plugins"], folder=tmp_path)
    (failed,) = [finding for finding in findings if finding.status == "problem"]
    assert failed.found.startswith("looking at it failed: AttributeError") and failed.part == "plugins"
    assert "PLAIT_DEBUG=1" in failed.fix and "model_fields" in failed.details["traceback"]
    assert any(finding.name == "odd" and finding.status == "ok" for finding in findings)
    assert not examination.sound(findings)
    assert findings_of("nowhere:nothing")[0].status == "problem"


# ---- plugins -----------------------------------------------------------------------------------------------------
@pytest.mark.smoke
def test_a_good_plugin_is_ok_with_its_hooks(site: Site) -> None:
    site("plait-fine", plugins={"fine": "fine_one:fine"}, files={"fine_one.py": GOOD.format(name="fine")})
    finding = finding_of("plugins:plugins", "fine")
    assert finding.status == "ok" and not finding.fix
    assert f"plait-fine 0.3, installed in {Path(sys.path[0])}; contract {CONTRACT}; loss_terms" in finding.found
    assert finding.details["hooks"] == ["loss_terms"]


def test_a_plugin_that_does_not_import_says_what_to_install(site: Site) -> None:
    site(
        "plait-bad",
        plugins={"bad": "bad_one:bad"},
        files={"bad_one.py": "import no_such_library_at_all"},
        metadata="Requires-Dist: no-such-distribution>=2\n",
    )
    finding = finding_of("plugins:plugins", "bad")
    assert finding.status == "problem" and "No module named 'no_such_library_at_all'" in finding.found
    assert "-p bad cannot be used. The others work." in finding.why
    assert finding.fix == 'pip install "no-such-distribution>=2"'
    assert finding_of("plugins:plugins", "task").status == "ok"


@pytest.mark.parametrize(
    ("contract", "said", "fix"),
    [
        (CONTRACT + 1, "pip install -U plait-core, for a release that speaks contract", "pip install -U plait-core"),
        (-1, "docs/hook-contract.md#changes", "pip install -U plait-other"),
        (0, "declares no hook contract", "pip install -U plait-other"),
    ],
)
def test_a_plugin_of_another_contract(site: Site, contract: int, said: str, fix: str) -> None:
    text = GOOD.format(name="other").replace(f'"other", {CONTRACT}', f'"other", {contract}')
    site("plait-other", plugins={"other": "other_one:other"}, files={"other_one.py": text})
    finding = finding_of("plugins:plugins", "other")
    assert finding.status == "problem" and "incompatible (plait-other 0.3" in finding.found
    assert said in finding.found and finding.fix == fix


def test_a_plugin_that_wants_what_plait_has_not_says_what(site: Site) -> None:
    text = f"from plait import ThingOfTheFuture\nclass late(ThingOfTheFuture):\n    contract: int = {CONTRACT + 1}\n"
    site("plait-late", plugins={"late": "late_one:late"}, files={"late_one.py": text})
    finding = finding_of("plugins:plugins", "late")
    assert finding.status == "problem" and "broken" in finding.found and "ThingOfTheFuture" in finding.found
    assert finding.fix == "pip install -U plait-late, or pip uninstall plait-late"


def test_a_contract_that_is_no_number_is_said(site: Site) -> None:
    text = GOOD.format(name="wordy").replace(f'"wordy", {CONTRACT}', '"wordy", "one"')
    site("plait-wordy", plugins={"wordy": "wordy_one:wordy"}, files={"wordy_one.py": text})
    finding = finding_of("plugins:plugins", "wordy")
    assert "broken" in finding.found and "'one', not a number; write `contract = " in finding.found


def test_two_packages_with_one_name(site: Site) -> None:
    site("plait-one", plugins={"twin": "twin_one:twin"}, files={"twin_one.py": GOOD.format(name="twin")})
    site("plait-two", plugins={"twin": "twin_two:twin"}, files={"twin_two.py": GOOD.format(name="twin")})
    findings = [finding for finding in findings_of("plugins:plugins") if finding.name == "twin"]
    assert [finding.status for finding in findings] == ["problem", "problem"]
    assert all("plait-one 0.3 and plait-two 0.3" in finding.found for finding in findings)
    assert findings[0].fix == "pip uninstall plait-one or pip uninstall plait-two"


def test_an_invalid_claims_file(site: Site) -> None:
    pytest.importorskip("plait_experiments")
    files = {"lying/__init__.py": GOOD.format(name="lying"), "lying/claims.toml": "[[claims]]\nid = 'Not An Id'\n"}
    site("plait-lying", plugins={"lying": "lying:lying"}, files=files)
    finding = finding_of("plugins:claims", "lying claims")
    assert finding.status == "problem" and "claims.toml" in finding.found and "plait verify lying" in finding.why
    assert len(finding.details["problems"]) >= 1


def test_claims_files_are_left_alone_where_nothing_reads_them(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"idle/__init__.py": GOOD.format(name="idle"), "idle/claims.toml": "= no TOML ="}
    site("plait-idle", plugins={"idle": "idle:idle"}, files=files)
    monkeypatch.setattr("plait_doctor.plugins.find_spec", lambda name: None)
    (finding,) = findings_of("plugins:claims")
    assert finding.status == "ok" and "plait-experiments is not installed" in finding.found
    assert "pip install plait-experiments" in finding.fix


def test_an_artifact_of_two_packages(site: Site) -> None:
    text = f"""
import plait
class NAME(plait.Plugin):
    name, contract = "NAME", {CONTRACT}
    @plait.hookimpl
    def artifacts(self): return {{"poster": "NAME_one:poster"}}
"""
    for name in ("printer", "painter"):
        files = {f"{name}_one.py": text.replace("NAME", name)}
        site(f"plait-{name}", plugins={name: f"{name}_one:{name}"}, files=files)
    poster = finding_of("plugins:components", "poster")
    assert poster.status == "problem" and "is registered by plait-painter and by plait-printer" in poster.found


def test_a_data_source_of_two_packages_and_one_without_its_files(site: Site, tmp_path: Path) -> None:
    text = f"""
import plait
class NAME(plait.Plugin):
    name, contract = "NAME", {CONTRACT}
    @plait.hookimpl
    def data_sources(self):
        gone = plait.DataSource("a:b", "", places=("/no/such/place",), obtain="apt-get install NAME")
        here = plait.DataSource("a:b", "", places=({str(tmp_path)!r},))
        return {{"apples": plait.DataSource("a:b", ""), "NAME-here": here, "NAME-gone": gone}}
"""
    for name in ("shop", "mart"):
        files = {f"{name}_one.py": text.replace("NAME", name)}
        site(f"plait-{name}", plugins={name: f"{name}_one:{name}"}, files=files)
    apples = finding_of("plugins:components", "apples")
    assert apples.status == "problem" and "is registered by plait-mart and by plait-shop" in apples.found
    data = finding_of("plugins:data", "data")
    assert data.status == "ok" and {"shop-here", "tiny-images"} <= set(data.details["ready"])
    assert data.details["absent"]["shop-gone"] == "apt-get install shop" and "shop-gone" in data.found
    assert "shop-gone: apt-get install shop" in data.fix


# ---- distributions -----------------------------------------------------------------------------------------------
def test_unmet_requirements_are_those_that_pip_sees(site: Site) -> None:
    wanted = ["torch>=99", "pluggy<1", "pydantic!=2.*", "no-such-distribution", "numpy", 'never; extra == "more"']
    lines = "".join(f"Requires-Dist: {text}\n" for text in wanted)
    site(
        "plait-needy",
        plugins={"needy": "needy_one:needy"},
        files={"needy_one.py": GOOD.format(name="needy")},
        metadata=lines + "Provides-Extra: more\n",
    )
    findings = [finding for finding in findings_of("packages:requirements") if "plait-needy" in finding.found]
    assert {finding.status for finding in findings} == {"problem"}
    assert all("plait-needy was not made for this" in finding.why for finding in findings)
    texts = {finding.found: finding.fix for finding in findings}
    assert texts["no-such-distribution is not installed; plait-needy asks for no-such-distribution"]
    (torch,) = [text for text in texts if text.startswith("torch ")]
    assert torch.endswith("is older than torch>=99 that plait-needy asks for")
    assert texts[torch] == 'pip install -U "torch>=99"'
    assert any(re.match(r"pluggy \S+ is newer than pluggy<1 that", text) for text in texts)
    assert any(re.match(r"pydantic \S+ does not fit pydantic!=2.\* that", text) for text in texts)
    pip = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    said = [line for line in pip.stdout.splitlines() if line.startswith("plait-needy ")]
    assert len(said) == len(findings) == 4


def test_what_a_requirement_requires_is_a_warning(site: Site) -> None:
    site("middle-man", metadata="Requires-Dist: torch>=99\nRequires-Dist: not a requirement!\n")
    files = {"far_one.py": GOOD.format(name="far")}
    site("plait-far", plugins={"far": "far_one:far"}, files=files, metadata="Requires-Dist: middle-man\n")
    findings = [finding for finding in findings_of("packages:requirements") if "middle-man" in finding.found]
    assert [finding.status for finding in findings] == ["warning", "warning"]
    assert any("torch>=99 that middle-man asks for" in finding.found for finding in findings)
    assert any("which is no requirement" in finding.found for finding in findings)


def test_a_plait_core_that_is_not_the_imported_one(site: Site) -> None:
    site("plait-core", "0.0.9")
    finding, mixed = [finding for finding in findings_of("packages:versions") if finding.name == "versions"]
    assert mixed.status == "problem" and "plait-core 0.0.9, plait-cli" in mixed.found
    assert finding.status == "problem" and "pip knows plait-core 0.0.9" in finding.found
    assert finding.fix == "pip install -U --force-reinstall plait-core"


@pytest.mark.parametrize(("version", "status"), [("0.1.7", "warning"), ("0.2.0", "problem"), ("0.1.0", None)])
def test_versions_that_are_released_together(site: Site, version: str, status: str | None) -> None:
    site("plait-core", plait.__version__)
    site("plait-cli", version)
    site("plait", version)  # the meta-package may be installed beside the packages, or not
    findings = [finding for finding in findings_of("packages:versions") if finding.name == "versions"]
    assert [finding.status for finding in findings] == ([status] if status else [])
    if status:
        assert f"plait-cli {version}" in findings[0].found
        assert findings[0].fix.startswith(f'pip install -U "plait-core=={version}"')


def test_an_editable_installation_that_is_behind_its_folder(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    project = '[project]\nname = "plait-dev"\nversion = "0.3"\ndependencies = ["numpy>=1"]\n'
    (source / "pyproject.toml").write_text(project + '[project.entry-points.plait]\ndev = "dev_one:dev"\n')
    link = {"url": source.as_uri(), "dir_info": {"editable": True}}
    files = {"dev_one.py": GOOD.format(name="dev")}
    needs = "Requires-Dist: Numpy>=1\n"
    site("plait-dev", plugins={"dev": "dev_one:dev"}, files=files, metadata=needs, direct_url=link)
    finding = finding_of("packages:versions", "plait-dev")
    assert finding.status == "ok" and f"editable in {source}" in finding.found
    (source / "pyproject.toml").write_text(
        project.replace("numpy>=1", "numpy>=2") + '[project.entry-points.plait]\ndev = "dev_one:dev"\nnew = "a:b"\n'
    )
    finding = finding_of("packages:versions", "plait-dev")
    assert finding.status == "warning" and finding.fix == f"pip install -e {source}"
    assert "another list of dependencies and list of plugins by now" in finding.found


def test_a_distribution_that_is_there_twice(site: Site) -> None:
    site("torn-apart", "1.0")
    site("torn-apart", "1.1")
    finding = finding_of("packages:metadata", "metadata")
    assert finding.status == "warning" and "torn-apart" in finding.found and "1.0, 1.1" in finding.found


def test_optional_parts(site: Site) -> None:
    extras = "Provides-Extra: good\nProvides-Extra: lacking\nRequires-Dist: torch>=1\n"
    extras += 'Requires-Dist: numpy>=1; extra == "good"\nRequires-Dist: no-such-thing; extra == "lacking"\n'
    files = {"rich_one.py": GOOD.format(name="rich_one")}
    site("plait-rich", plugins={"rich_one": "rich_one:rich_one"}, files=files, metadata=extras)
    finding = finding_of("packages:optional", "plait-rich extras")
    assert finding.status == "ok" and finding.found == "here: good; not here: lacking"
    assert finding.fix == 'pip install "plait-rich[lacking]"'
    assert finding.details["lacking"]["missing"] == ["no-such-thing"] and finding.details["good"]["present"]
    core = finding_of("packages:optional", "plait-core extras")
    assert "onnx" in core.details and core.details["onnx"]["for"].startswith("export to ONNX")


def test_another_python(site: Site) -> None:
    assert finding_of("environment:python", "python").status == "ok"
    files = {"antique_one.py": GOOD.format(name="antique")}
    site("plait-antique", plugins={"antique": "antique_one:antique"}, files=files, metadata="Requires-Python: <3.0\n")
    finding = finding_of("environment:python", "python")
    assert finding.status == "problem" and "does not fit <3.0, which plait-antique 0.3 asks for" in finding.found
