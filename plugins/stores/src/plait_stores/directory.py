"""Run directories on object stores (``s3://``, ``gs://``, ``memory://``, whatever fsspec knows). No torch here.

A run works in a local copy and publishes it after every checkpoint: first every changed file under a name that holds
its checksum, then, in one write, ``published.json`` that says which files make the run. So whoever reads sees one whole
state or the one before, never a mixture, whenever the writer was killed. Files that no state needs any more are removed
last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from platformdirs import user_cache_dir

from plait.errors import BadCheckpoint, BadInput, RunFailed, first_line
from plait.storage.directory import RunDirectory
from plait.storage.files import write_atomically

MANIFEST = "published.json"
VERSION = 1
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
"""Stores in which an object appears whole or not at all."""


def copies() -> Path:
    """Where the local copies lie: ``plait/stores`` in the user's cache folder."""
    return Path(user_cache_dir("plait", appauthor=False)) / "stores"


class _Missing(Exception):
    """A published file is not there (any more)."""


class StoredDirectory(RunDirectory):
    """A run on an object store; ``path`` is the local copy.

    Args:
        url: ``s3://bucket/runs/one``.

    Raises:
        BadInput: fsspec or the store's package is not installed, or the URL cannot be used.
    """

    shared = False

    def __init__(self, url: str) -> None:
        self.url = url
        name = PurePosixPath(url).name[:48]  # stores allow longer names than a disk does
        super().__init__(copies() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}")
        self.scheme = url.partition("://")[0]
        self._files, self._root = _open(url, self.scheme)
        self._writer = uuid.uuid4().hex
        self._known: dict[str, Any] = {}

    @property
    def shown(self) -> str:
        """The URL."""
        return self.url

    # ---- reading ------------------------------------------------------------------------------------------------
    def fetch(self) -> None:
        """Make the local copy what is published; what was never published is dropped.

        A copy that another process is writing is ahead of what is published, and is left alone.

        Raises:
            BadInput: the store does not answer.
            BadCheckpoint: a published file is missing or was changed.
        """
        self._bring(())

    def peek(self) -> None:
        """Bring the recipe and the events, not the checkpoints.

        Raises:
            BadInput, BadCheckpoint: as `fetch`.
        """
        self._bring((self.recipe_file.name, self.events_file.name))

    def _bring(self, only: tuple[str, ...]) -> None:
        for last in (False, True):
            manifest = self._manifest()
            self._known = manifest
            if self.is_being_written():
                return
            files = manifest.get("files", {})
            try:
                if only:
                    self._download({name: files[name] for name in only if name in files})
                else:
                    self._mirror(files)
                return
            except _Missing as error:  # a writer may have published anew meanwhile
                if last:
                    raise BadCheckpoint(f"{self.url}: a published file is missing: {error}.") from error

    def _mirror(self, files: dict[str, Any]) -> None:
        if not files:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        self._download(files)
        for name in self._local():
            if name not in files:
                (self.path / name).unlink()

    def _download(self, files: dict[str, Any]) -> None:
        for name, entry in files.items():
            local = self.path / name
            if not local.is_file() or _digest(local) != entry["sha256"]:
                write_atomically(local, lambda temporary, e=entry: self._get(e, temporary))  # type: ignore[misc]

    def _get(self, entry: dict[str, Any], temporary: Path) -> None:
        try:
            self._files.get_file(f"{self._root}/{entry['object']}", str(temporary))
        except FileNotFoundError as error:
            raise _Missing(entry["object"]) from error
        if _digest(temporary) != entry["sha256"]:
            raise BadCheckpoint(f"{self.url}/{entry['object']} was changed after it was published.")

    def must_be_free(self) -> None:
        """Refuse a place where a run is published.

        Raises:
            BadInput: there is one, or the store does not answer.
        """
        if self._manifest():
            raise BadInput(f"{self.url} already holds a run: choose another --out, or `plait resume {self.url}`.")

    def create(self) -> None:
        """Begin a new run with an empty copy."""
        self.must_be_free()
        self._known = {}
        shutil.rmtree(self.path, ignore_errors=True)
        self.checkpoints.mkdir(parents=True)

    # ---- writing ------------------------------------------------------------------------------------------------
    def publish(self) -> None:
        """Publish the local copy as it is now.

        Raises:
            RunFailed: the store does not answer, or another process publishes here; what was published before stands.
        """
        try:
            self._publish()
        except RunFailed:
            raise
        except Exception as error:  # each store has errors of its own
            raise RunFailed(
                f"{self.url} could not be published: {type(error).__name__}: {first_line(error)}. "
                f"What was published before stands; the newer state lies in {self.path}."
            ) from error

    def _publish(self) -> None:
        there = self._manifest()
        if there.get("writer") not in (None, self._writer, self._known.get("writer")):
            raise RunFailed(f"{self.url} is being published by another process; this one stops.")
        before = there.get("files", {})
        files: dict[str, Any] = {}
        for name in self._local():
            path = self.path / name
            digest, size = _digest(path), path.stat().st_size
            inside = PurePosixPath(name)
            place = str(inside.with_name(f"{inside.stem}.{digest[:12]}{inside.suffix}"))
            files[name] = {"object": place, "sha256": digest, "size": size}
            if before.get(name, {}).get("sha256") != digest:
                self._put(path, f"{self._root}/{place}", size)
        manifest = {"version": VERSION, "writer": self._writer, "files": files}
        self._write_manifest(json.dumps(manifest, indent=1).encode())
        self._known = manifest
        kept = {entry["object"] for entry in files.values()}
        for entry in before.values():
            if entry["object"] not in kept:
                self._files.rm_file(f"{self._root}/{entry['object']}")

    def _put(self, local: Path, remote: str, size: int) -> None:
        self._files.makedirs(remote.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(local), remote)
        arrived = self._files.size(remote)
        if arrived != size:
            raise OSError(f"{remote} has {arrived} of {size} bytes")

    def _write_manifest(self, content: bytes) -> None:
        target = f"{self._root}/{MANIFEST}"
        if self.scheme in WHOLE:
            self._files.pipe_file(target, content)
            return
        self._files.pipe_file(f"{target}.{self._writer}", content)
        self._files.mv(f"{target}.{self._writer}", target)

    # ---- inside -------------------------------------------------------------------------------------------------
    def _manifest(self) -> dict[str, Any]:
        """What is published, empty when nothing is."""
        try:
            self._files.invalidate_cache()
            content = self._files.cat_file(f"{self._root}/{MANIFEST}")
        except FileNotFoundError:
            return {}
        except Exception as error:  # credentials, bucket, network: each store has errors of its own
            raise BadInput(f"{self.url} cannot be read: {type(error).__name__}: {first_line(error)}") from error
        try:
            manifest: dict[str, Any] = json.loads(content)
            version = manifest["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.url}/{MANIFEST} is not what plait publishes: {error}.") from error
        if version != VERSION:
            raise BadInput(f"{self.url} was published in version {version}, this plait-core reads {VERSION}.")
        return manifest

    def _local(self) -> list[str]:
        """The files of the copy, relative; not the lock, the launch, half-written files or hidden folders."""
        every = sorted(p.relative_to(self.path) for p in self.path.rglob("*") if p.is_file())
        return [name.as_posix() for name in every if not any(part.startswith(".") for part in name.parts)]


def published_below(url: str, depth: int) -> Iterator[StoredDirectory]:
    """The runs published at or below a URL, in the order of their names.

    Args:
        url: ``s3://bucket/runs``.
        depth: how many folders below it.

    Raises:
        BadInput: as `StoredDirectory`, or the store does not answer.
    """
    files, root = _open(url, url.partition("://")[0])
    try:
        files.invalidate_cache()
        names = [str(name) for name in files.find(root, maxdepth=depth + 1)]
    except FileNotFoundError:
        return
    except Exception as error:  # each store has errors of its own
        raise BadInput(f"{url} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if file == MANIFEST:
            below = folder.removeprefix(root).strip("/")
            yield StoredDirectory(f"{url}/{below}" if below else url)


def _open(url: str, scheme: str) -> tuple[Any, str]:
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        fix = f" Install it: pip install 'plait-stores[{EXTRAS[scheme]}]'." if scheme in EXTRAS else ""
        raise BadInput(f"{url}: {first_line(error)}.{fix}") from error
    except Exception as error:  # an unknown protocol, options that the store refuses
        raise BadInput(f"{url}: {first_line(error)}") from error
    return files, str(root).rstrip("/")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
