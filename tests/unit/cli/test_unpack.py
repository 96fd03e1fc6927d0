"""A part of the workspace as a tar archive, from one end of a connection to the other."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_jobs.errors import ConfigError
from medgr2_jobs.store.tar import PathNotFound, export
from medgr2_operator.cli import jobs_process
from medgr2_operator.cli.errors import CommandError
from medgr2_operator.cli.unpack import BadArchiveError, Unpacker


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A report behind a link, as a cycle has it, and links of every kind beside it."""
    root = tmp_path / "workspace"
    report = root / "artifacts/report/abc/a1"
    (report / "figures").mkdir(parents=True)
    (report / "report.md").write_text("# 0.871\n")
    (report / "figures/accuracy.png").write_bytes(bytes(range(256)) * 5000)
    (report / "empty").mkdir()
    (report / "same.md").symlink_to("report.md")
    (report / "all").symlink_to("figures")
    (report / "images").symlink_to("../../../../images")
    (report / "shadow").symlink_to("/etc/shadow")
    os.link(report / "report.md", report / "twice.md")
    (root / "images").mkdir()
    (root / "cycles/loop").mkdir(parents=True)
    (root / "cycles/loop/report").symlink_to("../../artifacts/report/abc/a1")
    (root / "cycles/loop/outside").symlink_to("/etc")
    return root


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def archive_of(root: Path, path: str) -> tuple[bytes, str]:
    stream = io.BytesIO()
    summary = export(root, path, stream)
    assert summary.sha256 == hashlib.sha256(stream.getvalue()).hexdigest()
    assert summary.bytes == len(stream.getvalue())
    return stream.getvalue(), summary.sha256


def unpack(data: bytes, target: Path, sha256: str = "", size: int = 4097, *, replace: bool = False) -> None:
    with Unpacker(target) as unpacker:
        for piece in pieces(data, size):
            unpacker.write(piece)
        unpacker.finish(sha256 or hashlib.sha256(data).hexdigest(), replace=replace)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1000, 65537, 10_000_000])
def test_a_folder_arrives_as_it_is(workspace: Path, tmp_path: Path, size: int) -> None:
    data, sha256 = archive_of(workspace, "cycles/loop/report")
    unpack(data, tmp_path / "got", sha256, size)
    report = workspace / "artifacts/report/abc/a1"
    expected = ("report.md", "figures/accuracy.png", "same.md", "twice.md")
    assert files(tmp_path / "got") == {name: (report / name).read_bytes() for name in expected}
    assert (tmp_path / "got/empty").is_dir()
    assert not any(path.is_symlink() for path in (tmp_path / "got").rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "workspace"]


def test_links_that_lead_elsewhere_are_left_out_and_told(workspace: Path) -> None:
    summary = export(workspace, "cycles/loop/report", io.BytesIO())
    assert (summary.left_out, summary.left_out_count, summary.files) == (["all", "images", "shadow"], 3, 4)


def test_a_file_arrives_as_a_file(workspace: Path, tmp_path: Path) -> None:
    data, sha256 = archive_of(workspace, "cycles/loop/report/figures/accuracy.png")
    unpack(data, tmp_path / "got.png", sha256)
    assert (tmp_path / "got.png").read_bytes() == bytes(range(256)) * 5000


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "cycles/loop/outside", "~/x"])
def test_paths_that_leave_the_workspace_are_refused(workspace: Path, path: str) -> None:
    with pytest.raises(ConfigError):
        export(workspace, path, io.BytesIO())


def test_what_is_not_there_is_told_with_what_is(workspace: Path) -> None:
    with pytest.raises(PathNotFound, match=r"cycles/loop has outside/, report/"):
        export(workspace, "cycles/loop/reprot", io.BytesIO())


def test_the_command_says_on_stderr_what_it_sent(workspace: Path) -> None:
    command = [sys.executable, "-m", "medgr2_jobs.store.tar", "--workspace", str(workspace)]
    done = subprocess.run([*command, "cycles/loop/report"], capture_output=True, check=True)
    assert f'"sha256": "{hashlib.sha256(done.stdout).hexdigest()}"' in done.stderr.decode()
    missing = subprocess.run([*command, "nothing"], capture_output=True, check=False)
    assert (missing.returncode, missing.stdout) == (2, b"")
    outside = subprocess.run([*command, "../x"], capture_output=True, check=False)
    assert (outside.returncode, outside.stdout) == (78, b"")


def test_the_command_needs_neither_torch_nor_pyarrow() -> None:
    code = "import sys, medgr2_jobs.store.tar; print([n for n in ('torch', 'pyarrow', 'numpy') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# -- what must not happen ----------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x") -> Callable[..., None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(content))

    return add


def archive(*members: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for add in members:
            add(tar)
    return stream.getvalue()


FOLDER = member("data", tarfile.DIRTYPE)


@pytest.mark.parametrize(
    "members",
    [
        [FOLDER, member("data/../../escaped")],
        [FOLDER, member("../escaped")],
        [FOLDER, member("/tmp/escaped")],
        [FOLDER, member("other")],
        [FOLDER, member("data/link", tarfile.SYMTYPE, "/etc")],
        [FOLDER, member("data/link", tarfile.SYMTYPE, "/tmp"), member("data/link/escaped")],
        [FOLDER, member("data/link", tarfile.LNKTYPE, "/etc/passwd")],
        [FOLDER, member("data/fifo", tarfile.FIFOTYPE)],
        [FOLDER, member("data/device", tarfile.CHRTYPE)],
        [FOLDER, member("data/x"), member("data/x")],
        [member("data"), member("data/below-a-file")],
        [member("data/without-folder")],
        [],
    ],
)
def test_members_that_leave_the_target_are_refused(tmp_path: Path, members: list[Callable[..., None]]) -> None:
    with pytest.raises(BadArchiveError):
        unpack(archive(*members), tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, 511, 5000, -20000, -1])
def test_a_truncated_archive_leaves_nothing(workspace: Path, tmp_path: Path, keep: int) -> None:
    data, sha256 = archive_of(workspace, "cycles/loop/report")
    with pytest.raises(BadArchiveError):
        unpack(data[:keep], tmp_path / "got", sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def test_a_changed_byte_is_noticed(workspace: Path, tmp_path: Path) -> None:
    data, sha256 = archive_of(workspace, "cycles/loop/report/report.md")
    at = data.index(b"# 0.871")
    with pytest.raises(BadArchiveError, match="not those that were sent"):
        unpack(data[:at] + b"#" + data[at + 1 :].replace(b"0.871", b"0.999"), tmp_path / "got", sha256)
    assert not (tmp_path / "got").exists()


def test_what_is_there_stays_unless_it_is_to_be_replaced(workspace: Path, tmp_path: Path) -> None:
    target = tmp_path / "got"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    data, sha256 = archive_of(workspace, "cycles/loop/report")
    with pytest.raises(FileExistsError):
        unpack(data, target, sha256)
    with pytest.raises(BadArchiveError):
        unpack(data[:5000], target, sha256, replace=True)
    assert files(target) == {"mine.txt": b"mine"}
    unpack(data, target, sha256, replace=True)
    assert "mine.txt" not in files(target)
    assert (target / "report.md").is_file()


def test_an_interrupted_copy_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    data, _ = archive_of(workspace, "cycles/loop/report")

    def interrupted() -> None:
        with Unpacker(tmp_path / "got") as unpacker:
            unpacker.write(data[:5000])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def test_a_copy_on_this_computer_is_as_one_from_a_cluster(workspace: Path, tmp_path: Path) -> None:
    def copy(path: str, target: Path, *, replace: bool = False) -> dict[str, Any]:
        return jobs_process.unpacked("store.tar", path, workspace=workspace, target=target, what=path, replace=replace)

    summary = copy("cycles/loop/report", tmp_path / "got")
    assert files(tmp_path / "got") == {
        name: data for name, data in files(workspace / "artifacts/report/abc/a1").items() if name != "shadow"
    }
    assert (summary["files"], summary["left_out_count"]) == (len(files(tmp_path / "got")), 3)
    with pytest.raises(CommandError, match="--force replaces it"):
        copy("cycles/loop/report", tmp_path / "got")
    copy("cycles/loop/report/report.md", tmp_path / "got", replace=True)
    assert (tmp_path / "got").read_text() == "# 0.871\n"
    with pytest.raises(CommandError, match="no such file or folder"):
        copy("cycles/loop/nothing", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "workspace"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_told_as_one(workspace: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        with pytest.raises(CommandError, match="No space left on device") as error:
            jobs_process.unpacked(
                "store.tar", "cycles/loop/report", workspace=workspace, target=small / "got", what="x", replace=False
            )
        assert error.value.exit_code == 75
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
