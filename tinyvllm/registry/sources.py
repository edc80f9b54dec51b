"""Where plugins come from: installed distributions, which are listed without importing them, and local code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm._regular_file import read_regular
from tinyvllm.errors import PluginError, TinyvllmError
from tinyvllm.interfaces import Kind

_GROUP = re.compile(r"tinyvllm\.(?P<plural>\w+)\.v(?P<version>[0-9]+)")
_MAX_SOURCE_BYTES = 16 * 2**20
_PLURALS = {kind.entry_point_group.split(".")[1]: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Announcement:
    """An installed plugin, known from its distribution's entry points alone.

    Attributes:
        kind: None where the entry point group is not one of ours, which makes the plugin unreachable.
        api_version: of the interfaces that it was written for; 0 where the group does not say.
    """

    kind: Kind | None
    name: str
    distribution: str
    version: str
    api_version: int
    group: str
    entry_point: importlib.metadata.EntryPoint

    @property
    def origin(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.distribution} {self.version}"


def announcements() -> list[Announcement]:
    """Every installed plugin, in order of group and name. Imports none of them."""
    names = {
        distribution.metadata["Name"]
        for distribution in importlib.metadata.distributions()
        if "tinyvllm." in (distribution.read_text("entry_points.txt") or "")  # metadata of hundreds is slow to parse
    }
    found = []
    for name in names:
        distribution = importlib.metadata.distribution(name)  # of several on sys.path the one that Python would import
        entries = [entry for entry in distribution.entry_points if entry.group.startswith("tinyvllm.")]
        found += [_announcement(entry, name, distribution.version) for entry in entries]
    return sorted(found, key=lambda each: (each.group, each.name, each.distribution))


def import_entry_point(announcement: Announcement) -> Any:
    """The module or object that an entry point leads to.

    Raises:
        PluginError: it cannot be imported; with its traceback, package and version.
    """
    try:
        return announcement.entry_point.load()
    except (Exception, SystemExit) as error:
        what = f"plugin {announcement.name!r} of {announcement.origin} ({announcement.entry_point.value})"
        raise PluginError(f"{what} cannot be imported: {describe_failure(error)}") from error


def import_local(reference: str, base: Path) -> Any:
    """The module of a local plugin: ``./file.py`` relative to ``base``, or ``package.module``.

    Raises:
        PluginError: there is no such file or module, or it cannot be imported.
    """
    if reference.endswith(".py") or "/" in reference:
        try:
            path = base / Path(reference).expanduser()
        except RuntimeError as error:
            raise PluginError(f"local plugin {reference!a}: {error}; give the whole path of the file") from error
        return _import_file(path, reference)
    try:
        return importlib.import_module(reference)
    except ModuleNotFoundError as error:
        # Only the plugin itself being absent has this remedy; a missing import inside it shows its traceback.
        if error.name is not None and (reference == error.name or reference.startswith(f"{error.name}.")):
            remedy = f"install it, or name a file as ./{reference.replace('.', '/')}.py"
            raise PluginError(f"local plugin {reference!r}: there is no module {error.name!r}; {remedy}") from error
        raise PluginError(f"local plugin {reference!r} cannot be imported: {describe_failure(error)}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"local plugin {reference!r} cannot be imported: {describe_failure(error)}") from error


def describe_failure(error: BaseException) -> str:
    """The error in a line, then its traceback without the import machinery's frames and ours.

    An error of ours is its message alone: that says what the plugin's author did wrong.
    """
    if isinstance(error, TinyvllmError):
        return str(error)
    report = traceback.TracebackException.from_exception(error)
    hidden = ("<frozen importlib", str(Path(importlib.__file__).parent), str(Path(__file__).parent), "pluggy")
    frames = [frame for frame in report.stack if not any(part in frame.filename for part in hidden)]
    report.stack = traceback.StackSummary.from_list(frames)
    report.__cause__ = report.__context__ = None
    line = f"{type(error).__name__}: {error}"
    return f"{line}\n{''.join(report.format()).rstrip()}" if frames else line


def _announcement(entry: importlib.metadata.EntryPoint, distribution: str, version: str) -> Announcement:
    match = _GROUP.fullmatch(entry.group)
    kind = _PLURALS.get(match["plural"]) if match else None
    api_version = int(match["version"]) if match else 0
    return Announcement(kind, entry.name, distribution, version, api_version, entry.group, entry)


def _import_file(path: Path, reference: str) -> Any:
    try:
        source = read_regular(path.resolve(), _MAX_SOURCE_BYTES)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in it; RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise PluginError(f"local plugin {reference!a}: cannot read {str(path)[:300]!a}: {reason}") from error
    # Named after its content: the same file gives the same module (and so the same classes) to every engine,
    # an edited file gives a new one.
    digest = hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:12]
    name = f"tinyvllm_local_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise PluginError(
            f"local plugin {reference!a}: {path.name!a} is no Python source; name a file that ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(
            f"local plugin {reference!r} ({path}) cannot be imported: {describe_failure(error)}"
        ) from error
    return module
