"""What the site needs beyond docs/: pages that lie elsewhere in the repository, and links to them (mkdocs hooks).

The Markdown files are written for GitHub, where a link leads to a file. Here a link to a file that is no page of docs/
becomes a page too: a README, the changelog, a source. Every plugin with claims is among the methods by itself.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
FENCE = re.compile(r"^(```+)(\w*)\n.*?^\1$", re.S | re.M)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
MARKER = re.compile(r"^<!-- [^>]* -->$", re.M)
OUTSIDE = re.compile(r"[a-z]+:")
FIXED = {
    "README.md": "tour.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "core/README.md": "packages/core.md",
    "cli/README.md": "packages/cli.md",
}
"""Repository file -> page."""
IMAGES = (".png", ".svg")
LEXERS = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the nav's empty section Methods with every plugin that has claims."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Methods" in entry:
            entry["Methods"] = [{folder.name: f"methods/{folder.name}.md"} for folder in methods()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/: the fixed ones, the plugins', and whatever a page links to."""
    waiting = [ROOT / path for path in FIXED] + sorted(ROOT.glob("plugins/*/README.md"))
    waiting += [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    seen: set[Path] = set()
    while waiting:
        source = waiting.pop().resolve()
        if source in seen:
            continue
        seen.add(source)
        if uri_of(source) not in files.src_uris:
            files.append(_page(source, config))
        if source.is_dir():
            waiting += _readmes(source)
        elif source.suffix == ".md":
            waiting += targets(source)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, and no markers of generated parts."""
    here = page.file.src_uri
    source = next((path for path in _sources(files) if uri_of(path) == here), None)
    if source is None or source.suffix != ".md":
        return markdown

    def rewritten(text: str) -> str:
        return MARKER.sub("\n", LINK.sub(link, text))

    def link(match: re.Match[str]) -> str:
        start, target, end = match.groups()
        if OUTSIDE.match(target):
            return match[0]
        uri = uri_of(_resolved(source, target))
        return f"{start}{posixpath.relpath(uri, posixpath.dirname(here) or '.')}{end}"

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [rewritten(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    text = "".join([*parts, rewritten(markdown[last:])])
    if here == "scoreboard/scoreboard.md":
        text = text.replace("\n", "\n\n[The same as a page of its own](scoreboard.html), to send to somebody.\n", 1)
    return text


def on_post_build(config: MkDocsConfig) -> None:
    """Mend the scoreboard: its links to a plugin's page of its own lead to the method where that page was not kept."""
    board = Path(config.site_dir) / "scoreboard" / "scoreboard.html"
    text = board.read_text(encoding="utf-8")
    for folder in methods():
        if not board.with_name(f"{folder.name}.html").exists():
            text = text.replace(f'href="{folder.name}.html', f'href="../methods/{folder.name}/index.html#claims')
    board.write_text(text, encoding="utf-8")


def methods() -> list[Path]:
    """The folders of the plugins with claims, by name."""
    return sorted({claims.parents[2] for claims in ROOT.glob("plugins/*/src/*/claims.toml")})


def uri_of(source: Path) -> str:
    """The page of the site (as mkdocs names it, by its source) that a file of the repository becomes."""
    if source.is_relative_to(DOCS) and source.suffix != ".py" and source.suffix != ".json":
        return source.relative_to(DOCS).as_posix()
    path = source.relative_to(ROOT).as_posix()
    if source.is_dir():
        return f"source/{path}.md"
    if path in FIXED:
        return FIXED[path]
    if source.name == "README.md":
        folder = source.parent
        if folder.parent == ROOT / "plugins":
            return f"{'methods' if folder in methods() else 'packages'}/{folder.name}.md"
        return f"{folder.relative_to(ROOT).as_posix()}.md"
    if source.suffix in IMAGES:
        return f"source/{path}"
    return path if source.suffix == ".md" else f"source/{path}.md"


def targets(source: Path) -> list[Path]:
    """The files of the repository that a Markdown file links to."""
    text = FENCE.sub("", source.read_text(encoding="utf-8"))
    return [_resolved(source, match[2]) for match in LINK.finditer(text) if not OUTSIDE.match(match[2])]


def _resolved(source: Path, target: str) -> Path:
    path = (source.parent / target).resolve()
    path = path / "README.md" if (path / "README.md").is_file() else path
    if not path.exists() or not path.is_relative_to(ROOT):
        raise PluginError(f"{source.relative_to(ROOT)}: the link {target!r} leads to no file of the repository")
    return path


def _page(source: Path, config: MkDocsConfig) -> File:
    uri = uri_of(source)
    if source.suffix == ".md" or not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(source))
    path = source.relative_to(ROOT).as_posix()
    if source.is_dir():
        lines = [
            f"- [{r.parent.name}]({posixpath.relpath(uri_of(r), posixpath.dirname(uri))})" for r in _readmes(source)
        ]
        return File.generated(config, uri, content="\n".join([f"# {path}", "", *lines, ""]))
    code = source.read_text(encoding="utf-8")
    fence = "`" * 5
    text = f"# {path}\n\n{fence}{LEXERS.get(source.suffix, 'text')}\n{code.rstrip()}\n{fence}\n"
    return File.generated(config, uri, content=text)


def _readmes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/README.md"))


def _sources(files: Files) -> list[Path]:
    return [Path(file.abs_src_path).resolve() for file in files.documentation_pages() if file.abs_src_path]
