"""Whatever lies in the workspace, the file or the environment: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.cycle_documents import tiny_cycle
from tests.support.forked_jobs import forked_jobs
from tests.support.run_fixtures import CYCLE, RunWorkspace
from typer.testing import CliRunner

from medgr2_operator.cli.app import app

__all__ = ["forked_jobs"]

pytestmark = pytest.mark.usefixtures("forked_jobs")

NAME = CYCLE["metadata"]["name"]
STATE = Path("cycles", NAME, "state.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = RunWorkspace(tmp_path_factory.mktemp("finished"))
    code, output = workspace.run()
    assert code == 0, output
    return workspace.root / "ws"


@pytest.fixture
def cycle(tmp_path: Path) -> Path:
    file = tmp_path / "cycle.yaml"
    file.write_text(yaml.safe_dump(CYCLE))
    return file


class Command:
    """Runs commands, of which the test only accepts that they end in words."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Exit code, and everything that was said, by processes of ours as well."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        said = result.output + "".join(self._capfd.readouterr())
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in said, said
        assert "a fault of medgr2" not in said, said
        return result.exit_code, said


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


def commands(workspace: Path | str, cycle: Path) -> Iterator[tuple[object, ...]]:
    """Every command that looks into a workspace."""
    yield "plan", cycle, "-w", workspace
    yield "run", cycle, "-w", workspace, "--plain"
    yield "compare", NAME, "-w", workspace
    yield "report", NAME, "-w", workspace
    yield "lineage", NAME, "-w", workspace
    yield "lineage", NAME, "t001-000001-00", "-w", workspace
    yield "review", "export", NAME, "--iteration", "1", cycle.with_name("out"), "-w", workspace
    yield "review", "import", NAME, cycle, "--iteration", "1", "-w", workspace


Damage = Callable[[Path], None]


def _state(content: bytes) -> Damage:
    def damage(root: Path) -> None:
        (root / STATE).write_bytes(content)

    return damage


def _folder(place: Path) -> Damage:
    def damage(root: Path) -> None:
        (root / place).unlink()
        (root / place).mkdir()

    return damage


def _truncated(root: Path) -> None:
    text = (root / STATE).read_bytes()
    (root / STATE).write_bytes(text[: len(text) // 2])


def _linked_artifacts(root: Path) -> None:
    shutil.move(root / "artifacts", root.with_name("elsewhere"))
    (root / "artifacts").symlink_to(root.with_name("elsewhere"))


def _file_for_artifacts(root: Path) -> None:
    shutil.rmtree(root / "artifacts")
    (root / "artifacts").write_text("no folder")


def _dangling_links(root: Path) -> None:
    shutil.rmtree(root / "artifacts")


def _links_in_circles(root: Path) -> None:
    for link in (root / "cycles" / NAME / "iterations").glob("*/*"):
        link.unlink()
        link.symlink_to(link)


def _manifests_of_something(root: Path) -> None:
    for number, manifest in enumerate(sorted(root.glob("artifacts/**/manifest.json"))):
        manifest.unlink()
        manifest.write_bytes((b"", b"[]", b"{}", b"\xff\xfe", b'"text"', b"null", b"{", b"[" * 100_000)[number % 8])


DAMAGES: dict[str, Damage] = {
    "state: not UTF-8": _state(b"\xff\xfe{}"),
    "state: empty": _state(b""),
    "state: truncated": _truncated,
    "state: foreign": _state(b'{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}'),
    "state: a list": _state(b"[1, 2]"),
    "state: deep": _state(b"[" * 100_000),
    "state: a folder": _folder(STATE),
    "artifacts: a link out of the workspace": _linked_artifacts,
    "artifacts: a file": _file_for_artifacts,
    "artifacts: gone": _dangling_links,
    "links: in circles": _links_in_circles,
    "manifests: of something": _manifests_of_something,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_workspace_that_is_damaged(
    invoke: Command, damage: Damage, finished: Path, cycle: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(finished, root, symlinks=True)
    damage(root)
    for command in commands(root, cycle):
        if command[0] != "run":  # a run mends what it can, with the real stages
            invoke(*command)


@pytest.mark.parametrize(
    "workspace", ["/proc/x", "/sys/kernel/x", "/etc/passwd", "/dev/null", "/proc/self/mem", "x" * 300]
)
def test_a_workspace_that_is_none(invoke: Command, workspace: str, cycle: Path) -> None:
    for command in commands(workspace, cycle):
        if command[0] == "plan":  # nothing is there yet
            continue
        code, said = invoke(*command)
        assert code in (2, 65, 78), (command, said)
        assert said.strip(), command


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\x00",
        b"",
        b"\xff\xfe",
        b"a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n" + b"".join(
            f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else '*b'] * 9)}]\n".encode() for n in range(30)
        ),
        b"spec: &s {again: *s}\n",
        b"[" * 10_000,
        b"a: " + b"9" * 10_000,
        b"a: 0x" + b"f" * 10_000,
        b"a: !!python/object/apply:os.system [true]\n",
        b"? {a: b}\n: c\n",
        b"a: 1\n" * 300_000,
        b"<<: *nowhere\n",
        b"a: !!binary '%'\n",
        b"a: 2024-99-99\n",
        b"--- \n--- \n",
    ],
    ids=range(15),
)  # fmt: skip
@pytest.mark.parametrize("command", ["validate", "plan", "run", "doctor", "fetch"])
def test_a_file_that_is_no_cycle(invoke: Command, content: bytes, command: str, tmp_path: Path) -> None:
    file = tmp_path / "cycle.yaml"
    file.write_bytes(content)
    code, said = invoke(command, file, *([] if command == "validate" else ["-w", tmp_path]))
    assert code == 2
    assert said.startswith(f"{file}: ")


def test_a_place_that_is_no_file(invoke: Command, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", "/proc/self/mem", "/dev/zero"):
        code, said = invoke("validate", place)
        assert code == 2
        assert said.startswith(f"{place}: ")


def test_a_name_that_is_no_cycle(invoke: Command) -> None:
    for name in ("../../etc", "", ".", "a/b", "UPPER", "x" * 300):
        assert invoke("report", name, "-w", "nowhere")[0] == 2


_CONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: a\n"
KUBECONFIGS = {
    "empty": "",
    "a list": "[]",
    "text": "just text",
    "no UTF-8": "\udcff",
    "not YAML": "{",
    "contexts of text": f"{_CONFIG}contexts: text\n",
    "a context of nothing": f"{_CONFIG}contexts: [{{name: a}}]\nclusters: []\nusers: []\n",
    "null": "null",
    "no server": f"{_CONFIG}contexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n"
    "clusters: [{name: c, cluster: {}}]\nusers: [{name: u, user: {}}]\n",
}


@pytest.mark.parametrize("content", KUBECONFIGS.values(), ids=KUBECONFIGS.keys())
def test_a_kubeconfig_that_is_broken(invoke: Command, content: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    code, said = invoke("suspend", "loop", "--kubeconfig", file)
    assert code in (2, 75)
    assert said.strip()


def test_nobody_has_a_home(invoke: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cycle: Path) -> None:
    for name in ("HOME", "KUBECONFIG", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert "no kubeconfig" in invoke("suspend", "loop")[1]
    assert invoke("plan", cycle, "-w", tmp_path / "ws")[0] == 0


def test_a_folder_that_is_gone(invoke: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cycle: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    there.rmdir()
    invoke("run", cycle, "--plain")
    invoke("report", "loop", "-w", ".medgr2")


def test_a_document_of_another_kind_is_told_from_a_cycle(invoke: Command, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(tiny_cycle() | {"kind": "Pod"}))
    assert invoke("plan", file)[0] == 2


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_spec_that_the_operator_would_not_read(invoke: Command, tmp_path: Path, command: str) -> None:
    """It is small as a file: an anchor is counted wherever it stands."""
    file = tmp_path / "cycle.yaml"
    patches = [{"op": "add", "path": "/metadata/annotations", "value": {"a": "x" * 30_000}}] * 10
    file.write_text(yaml.safe_dump(tiny_cycle(template={"patches": patches})))
    assert file.stat().st_size < 40_000
    code, said = invoke(command, file, *(() if command == "validate" else ("-w", tmp_path / "ws")))
    assert code == 2
    assert said.startswith(f"{file}: spec (line ")
    assert said.endswith("): is larger than 256 KiB, and no cycle needs as much: shorten it\n")
    assert not (tmp_path / "ws").exists()


VERBS = ("list", "status", "logs", "model", "report", "lineage", "suspend", "resume", "approve", "compare", "whois")


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelled_workspace_does_not_pass_for_an_empty_one(invoke: Command, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").touch()
    names = [] if verb == "list" else [NAME]
    assert invoke(verb, *names, "-w", tmp_path / "nowhere") == (
        2, f"{tmp_path}/nowhere: there is no such folder; a workspace is what `medgr2 run` was given as --workspace\n"
    )  # fmt: skip
    assert "/file: is no folder" in invoke(verb, *names, "-w", tmp_path / "file")[1]


def test_a_cycle_that_has_just_begun_is_not_called_unknown(invoke: Command, tmp_path: Path) -> None:
    (tmp_path / "cycles" / NAME).mkdir(parents=True)
    code, said = invoke("lineage", NAME, "-w", tmp_path)
    assert (code, f"cycle {NAME!r} in {tmp_path} has published nothing so far" in said) == (2, True)
