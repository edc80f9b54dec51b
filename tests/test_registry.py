"""Plugins are listed without importing them, loaded one at a time by name, and every way to be broken has its message.

Distributions are made up: a module and a dist-info folder in a temporary path, which is all that an installation is.
"""

import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Kind, PluginContext
from tinyvllm.registry import HOOKS, Registry, State
from tinyvllm.shapes import ModelShape

SCHEDULER = """
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Options, Plugin, Schedule

class Mine:
    def schedule(self, view):
        raise NotImplementedError

@hookimpl
def register_schedulers():
    return [Plugin("{name}", lambda context: Mine())]
"""
GROUP = "tinyvllm.schedulers.v1"


class Site:
    """A folder on sys.path in which distributions can be installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, name: str, source: str, group: str = GROUP, version: str = "1.2") -> str:
        """A distribution with one module and one entry point; the module's name."""
        module = f"{distribution.replace('-', '_')}_module"
        (self.folder / f"{module}.py").write_text(dedent(source).replace("{name}", name))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.endswith("_module") or name.startswith("tinyvllm_local_"):
            del sys.modules[name]


def context() -> PluginContext:
    shape = ModelShape(1, 64, 1, 1, 64, 64, 256, 64)
    return PluginContext(None, "cpu", shape, 64, 4, 64, 16, False, 0)


def refusal(kind: Kind, name: str, *local: str, base: Path | None = None) -> str:
    with pytest.raises(PluginError) as caught:
        Registry(local, base).get(kind, name)
    return str(caught.value)


def test_built_in_plugins_enter_by_entry_points_like_any_other() -> None:
    found = {(info.kind, info.name) for info in Registry().available() if info.distribution == "tinyvllm"}
    assert found >= {
        (Kind.LOADER, "safetensors"),
        (Kind.LOADER, "dummy"),
        (Kind.ATTENTION, "paged"),
        (Kind.SCHEDULER, "continuous"),
        (Kind.SCHEDULER, "static"),
        (Kind.SAMPLER, "default"),
        (Kind.KERNEL, "reference"),
    }


@pytest.mark.parametrize(("kind", "name"), [(info.kind, info.name) for info in Registry().available()])
def test_every_installed_plugin_can_be_got(kind: Kind, name: str) -> None:
    assert Registry().get(kind, name).name == name


def test_listing_imports_nothing(site: Site) -> None:
    module = site.install("acme-sched", "acme", "raise RuntimeError('imported')")
    (info,) = [info for info in Registry().available() if info.name == "acme"]
    assert (info.kind, info.distribution, info.version, info.api_version) == (Kind.SCHEDULER, "acme-sched", "1.2", 1)
    assert info.state is State.READY
    assert module not in sys.modules


def test_a_plugin_that_cannot_be_imported_matters_only_if_it_is_named(site: Site) -> None:
    site.install("acme-sched", "acme", "def broken():\n    raise RuntimeError('no luck')\nbroken()\n")
    assert Registry().get(Kind.SCHEDULER, "continuous").name == "continuous"
    message = refusal(Kind.SCHEDULER, "acme")
    assert message.startswith("plugin 'acme' of acme-sched 1.2 (acme_sched_module) cannot be imported: RuntimeError")
    assert "acme_sched_module.py" in message
    assert "in broken" in message
    assert "importlib" not in message


def test_two_plugins_with_one_name_are_an_error_naming_both(site: Site) -> None:
    site.install("acme-one", "acme", SCHEDULER)
    site.install("acme-two", "acme", SCHEDULER, version="3")
    assert {info.state for info in Registry().available() if info.name == "acme"} == {State.DUPLICATE}
    message = refusal(Kind.SCHEDULER, "acme")
    assert "acme-one 1.2" in message
    assert "acme-two 3" in message
    assert Registry().get(Kind.SCHEDULER, "continuous").name == "continuous"


def test_a_local_plugin_with_the_name_of_an_installed_one_is_an_error(site: Site) -> None:
    (site.folder / "mine.py").write_text(SCHEDULER.replace("{name}", "continuous"))
    message = refusal(Kind.SCHEDULER, "continuous", "./mine.py", base=site.folder)
    assert "local plugin ./mine.py" in message
    assert "tinyvllm 0" in message


def test_an_unknown_name_says_what_is_near_what_there_is_and_what_to_do() -> None:
    message = refusal(Kind.SCHEDULER, "continous")
    assert "did you mean 'continuous'?" in message
    assert "installed: continuous, static" in message
    assert "pip install" in message
    assert "plugins: [./my_plugin.py]" in message


def test_another_api_version_is_listed_as_incompatible_and_refused_by_name(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER, group="tinyvllm.schedulers.v7")
    (info,) = [info for info in Registry().available() if info.name == "acme"]
    assert (info.state, info.api_version) == (State.INCOMPATIBLE, 7)
    assert refusal(Kind.SCHEDULER, "acme") == (
        "scheduler 'acme' of acme-sched 1.2 was written for plugin API v7, this tinyvllm has v1; "
        "install a release of acme-sched made for it"
    )


def test_a_plugin_that_states_another_api_version_is_refused(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("Mine())", "Mine(), api_version=2)"))
    assert "was written for plugin API v2" in refusal(Kind.SCHEDULER, "acme")


def test_a_misspelt_entry_point_group_is_pointed_out(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER, group="tinyvllm.scheduler.v1")
    (info,) = [info for info in Registry().available() if info.name == "acme"]
    assert info.state is State.UNREACHABLE
    assert "announces 'acme' in tinyvllm.scheduler.v1, not tinyvllm.schedulers.v1" in refusal(Kind.SCHEDULER, "acme")


def test_a_misspelt_hook_is_an_error(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("def register_schedulers", "def register_scheduler"))
    message = refusal(Kind.SCHEDULER, "acme")
    assert "register_scheduler" in message
    assert "did you mean 'register_schedulers'?" in message


def test_a_broken_plugin_does_not_spoil_the_next(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("def register_schedulers", "def register_scheduler"))
    registry = Registry()
    for _ in range(2):
        with pytest.raises(PluginError, match="did you mean 'register_schedulers'"):
            registry.get(Kind.SCHEDULER, "acme")
    assert registry.get(Kind.SCHEDULER, "static").name == "static"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("@hookimpl\n", "", "has no function register_schedulers marked with @hookimpl"),
        ("register_schedulers()", "register_schedulers(engine)", "is not a valid plugin"),
        ("return [", "return 4 #", "must return a list of Plugin, got 4"),
        ("return [", "return None #", "must return a list of Plugin, got None"),
        ("[Plugin(", "['x'] or [Plugin(", "must return a list of Plugin, got ['str']"),
        (
            "return",
            "1 / 0\n    return",
            "register_schedulers of acme-sched 1.2 (acme_sched_module) failed: Zero",
        ),
        ("{name}", "other", "registers other, but the entry point of tinyvllm.schedulers.v1 is called 'acme'"),
        ("Mine())]", "Mine())] * 2", "registers a name twice: acme, acme"),
        ("Mine())", "Mine(), options=dict)", "options must be a subclass of tinyvllm.interfaces.Options"),
        ("lambda context: Mine()", "4", "create must be callable, got 4"),
    ],
)
def test_a_plugin_that_breaks_the_rules_is_told_which(site: Site, old: str, new: str, expected: str) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace(old, new))
    assert expected in refusal(Kind.SCHEDULER, "acme")


def test_options_that_would_swallow_unknown_keys_are_refused(site: Site) -> None:
    lax = "import pydantic\nclass Lax(pydantic.BaseModel):\n    x: int = 1\n"
    site.install("acme-sched", "acme", lax + SCHEDULER.replace("Mine())", "Mine(), options=Lax)"))
    assert "Lax would accept and ignore unknown keys; derive it from tinyvllm.interfaces.Options" in refusal(
        Kind.SCHEDULER, "acme"
    )


def test_what_is_created_must_have_the_methods_of_its_socket(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("def schedule(", "def shedule("))
    with pytest.raises(PluginError, match="is no Scheduler: Mine has no method schedule"):
        Registry().create(Kind.SCHEDULER, "acme", context())


def test_a_create_that_fails_is_shown_with_its_traceback(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("Mine())", "1 / 0)"))
    with pytest.raises(PluginError, match=r"scheduler 'acme' of acme-sched 1.2 cannot be created: ZeroDivisionError"):
        Registry().create(Kind.SCHEDULER, "acme", context())


@pytest.mark.parametrize(
    "end", ["__import__('sys').exit(0)", "(_ for _ in ()).throw(type('Panic', (BaseException,), {})())"]
)
def test_a_create_that_would_end_the_program_is_a_failure(site: Site, end: str) -> None:
    site.install("acme-sched", "acme", SCHEDULER.replace("Mine())", f"{end})"))
    with pytest.raises(PluginError, match=r"scheduler 'acme' of acme-sched 1.2 cannot be created: (SystemExit|Panic)"):
        Registry().create(Kind.SCHEDULER, "acme", context())


def test_create_fills_the_socket(site: Site) -> None:
    site.install("acme-sched", "acme", SCHEDULER)
    assert type(Registry().create(Kind.SCHEDULER, "acme", context())).__name__ == "Mine"


def test_one_module_may_register_several_names(site: Site) -> None:
    module = site.install("acme-sched", "acme", SCHEDULER.replace("Mine())]", "Mine()), Plugin('b', Mine)]"))
    entry_points = site.folder / "acme_sched-1.2.dist-info" / "entry_points.txt"
    entry_points.write_text(f"[{GROUP}]\nacme = {module}\nb = {module}\n")
    registry = Registry()
    assert [registry.get(Kind.SCHEDULER, name).name for name in ("acme", "b")] == ["acme", "b"]


def test_a_local_file_is_loaded_outright_and_found_by_name(site: Site) -> None:
    (site.folder / "mine.py").write_text(SCHEDULER.replace("{name}", "local"))
    registry = Registry(["./mine.py"], site.folder)
    assert registry.get(Kind.SCHEDULER, "local").name == "local"
    (info,) = [info for info in registry.available() if info.name == "local"]
    assert (info.state, info.distribution) == (State.LOCAL, "local plugin ./mine.py")


def test_a_local_module_is_loaded_by_its_dotted_name(site: Site) -> None:
    (site.folder / "pack_module").mkdir()
    (site.folder / "pack_module" / "mine_module.py").write_text(SCHEDULER.replace("{name}", "local"))
    assert Registry(["pack_module.mine_module"]).get(Kind.SCHEDULER, "local").name == "local"


def test_a_local_file_gives_every_engine_the_same_classes_until_it_is_edited(site: Site) -> None:
    path = site.folder / "mine.py"
    path.write_text(SCHEDULER.replace("{name}", "local"))
    first, second = (Registry(["./mine.py"], site.folder).get(Kind.SCHEDULER, "local") for _ in range(2))
    assert first.create is not None
    assert first.create.__globals__ is second.create.__globals__
    path.write_text(SCHEDULER.replace("{name}", "renamed"))
    assert Registry(["./mine.py"], site.folder).get(Kind.SCHEDULER, "renamed").name == "renamed"


@pytest.mark.parametrize(
    ("reference", "source", "expected"),
    [
        ("./absent.py", None, "local plugin './absent.py': cannot read"),
        ("no_such_module", None, "there is no module 'no_such_module'; install it, or name a file"),
        ("./mine.py", "import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("./mine.py", "x = (", "cannot be imported: SyntaxError"),
        ("./mine.py", "import sys; sys.exit(3)", "cannot be imported: SystemExit"),
        ("./mine.py", "x = 1", "local plugin ./mine.py registers nothing; mark a function with @hookimpl"),
    ],
)
def test_a_bad_local_plugin_is_an_error_at_once(site: Site, reference: str, source: str | None, expected: str) -> None:
    if source is not None:
        (site.folder / "mine.py").write_text(source)
    with pytest.raises(PluginError) as caught:
        Registry([reference], site.folder)
    assert expected in str(caught.value)


def test_every_kind_has_a_hook() -> None:
    assert set(HOOKS) == set(Kind)


def test_of_two_installations_of_one_distribution_the_first_on_the_path_counts(
    site: Site, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("acme-sched", "acme", SCHEDULER, version="1")
    newer = Site(tmp_path_factory.mktemp("newer"))
    newer.install("acme-sched", "acme", SCHEDULER, version="2")
    monkeypatch.syspath_prepend(str(newer.folder))
    (info,) = [info for info in Registry().available() if info.name == "acme"]
    assert (info.version, info.state) == ("2", State.READY)


def test_a_local_plugin_that_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "text.yaml").write_text("a: 1")
    (tmp_path / "loop.py").symlink_to("loop.py")
    for reference, reason in [
        ("./pipe.py", "it is a pipe, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        ("./a\0.py", "embedded null byte"),
        ("./text.yaml", "is no Python source; name a file that ends in .py"),
        ("./loop.py", "cannot read"),
        ("~nobody-of-this-name/a.py", "give the whole path of the file"),
    ]:
        with pytest.raises(PluginError, match="local plugin") as refused:
            Registry([reference], tmp_path)
        assert reason in str(refused.value)


def test_a_local_plugin_of_any_size_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(PluginError, match="has more than 16,777,216 bytes"):
        Registry(["./large.py"], tmp_path)
