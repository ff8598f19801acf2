"""The documentation site: built without a warning, every link leads somewhere, nothing is loaded from outside."""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"plait", *(folder.name for folder in ROOT.glob("plugins/*/src/*"))}
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@dataclass
class Html(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    path: Path
    links: list[str] = field(default_factory=list)
    sidebar: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            if "md-nav__link" in given.get("class", ""):
                self.sidebar.append(given["href"])
        if tag == "link" and RELATIONS & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


@cache
def parsed(path: Path) -> Html:
    return Html(path)


def pages(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if p.name != "404.html")  # its links are absolute


def target(page: Path, link: str) -> Path:
    """The file that a link of a page leads to."""
    path = (page.parent / unquote(urlsplit(link).path)).resolve() if urlsplit(link).path else page
    return path / "index.html" if path.is_dir() else path


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    broken = []
    for page in pages(site):
        for link in parsed(page).links:
            if urlsplit(link).scheme:
                continue
            file, anchor = target(page, link), unquote(urlsplit(link).fragment)
            if not file.is_file() or (anchor and file.suffix == ".html" and anchor not in parsed(file).anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_nothing_is_loaded_from_outside(site: Path) -> None:
    asked = []
    for page in pages(site):
        inline = re.findall(r"<style.*?</style>", page.read_text(encoding="utf-8"), re.S)
        for load in [*parsed(page).loads, *(u for style in inline for u in imports(style))]:
            link = load.strip("'\" ")
            if urlsplit(link).scheme not in ("", "data") or link.startswith("//"):
                asked.append(f"{page.relative_to(site)}: {link}")
            elif not urlsplit(link).scheme and not link.startswith("#"):
                assert target(page, link).is_file(), f"{page.relative_to(site)}: {link}"
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        for link in imports(sheet.read_text(encoding="utf-8")):
            if not link.strip("'\" ").startswith(("data:", "#", ".")) and "//" in link:
                asked.append(f"{sheet.relative_to(site)}: {link}")
    assert not asked


def imports(style: str) -> list[str]:
    return re.findall(r"url\(([^)]*)\)", style) + re.findall(r"@import\s+[\"']([^\"']+)", style)


def test_every_page_of_docs_and_every_plugin_is_in_the_navigation(site: Path) -> None:
    start = site / "index.html"
    reached = {target(start, link) for link in parsed(start).sidebar}
    wanted = {site / "index.html"}
    docs = ROOT / "docs"
    for page in docs.rglob("*.md"):
        wanted.add(site / page.relative_to(docs).with_suffix("") / "index.html")
    wanted.remove(site / "index" / "index.html")
    for readme in ROOT.glob("plugins/*/README.md"):
        kind = "methods" if list(readme.parent.glob("src/*/claims.toml")) else "packages"
        wanted.add(site / kind / readme.parent.name / "index.html")
    missing = sorted(str(page.relative_to(site)) for page in wanted - reached)
    assert not missing, "not in the nav of mkdocs.yml"
    assert all(page.is_file() for page in reached)


def test_a_methods_page_is_its_readme(site: Path) -> None:
    text = (site / "methods" / "chase" / "index.html").read_text(encoding="utf-8")
    for part in ("phase_a_end", "UMM finds better channels to remove than chance does", "<table>"):
        assert part in text
    assert "&lt;!--" not in text
    assert "<!-- end" not in text


def test_the_scoreboards_own_page_is_reached(site: Path) -> None:
    page = site / "scoreboard" / "scoreboard" / "index.html"
    assert site / "scoreboard" / "scoreboard.html" in {target(page, link) for link in parsed(page).links}


def test_the_reference_has_every_name_that_a_page_imports(site: Path) -> None:
    body = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    known = {line.split(" ", 1)[0] for line in zlib.decompress(body).decode().splitlines()}
    wanted = {(package, name) for package in ("plait", "plait_authoring") for name in import_module(package).__all__}
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
                    wanted |= {(node.module, alias.name) for alias in node.names}
    names = {(module, name): {f"{module}.{name}", f"{home(module, name)}.{name}"} for module, name in wanted}
    missing = [f"{module}.{name}" for (module, name), either in names.items() if not either & known]
    assert missing in ([], ["plait.__version__"]), "not in docs/reference"


def home(module: str, name: str) -> str:
    """The module in which a name is defined, where that can be seen."""
    return str(getattr(getattr(import_module(module), name), "__module__", module))


def test_the_search_finds_pages_of_every_kind(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    listed = {posixpath.dirname(entry["location"].partition("#")[0]) for entry in index["docs"]}
    assert {"concepts", "methods/fairsam", "reference/plait", "scoreboard/scoreboard", "tour"} <= listed
