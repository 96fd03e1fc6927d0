"""Container images for the real node, built from the repository's Dockerfiles without a registry.

An image is named by the hash of what goes into it, so only what changed is built and imported again. The base comes
from debootstrap; the Dockerfiles' own default is a public one.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tests.cluster import tools

ROOT = Path(__file__).parents[2]
RELEASE = "bookworm"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = Path("/etc/ssl/certs")
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Image:
    """Something to build."""

    name: str
    dockerfile: str
    """Path below the repository, or the text itself."""
    inputs: tuple[str, ...] = ()
    """Files and folders below the repository that go into it."""

    @property
    def text(self) -> str:
        return self.dockerfile if "\n" in self.dockerfile else (ROOT / self.dockerfile).read_text()

    @cached_property
    def reference(self) -> str:
        digest = hashlib.sha256(f"{RELEASE} {BASE_PACKAGES}\n{self.text}".encode())
        for given in self.inputs:
            for path in _files(ROOT / given):
                digest.update(f"{path.relative_to(ROOT)}\n".encode())
                digest.update(path.read_bytes())
        return f"localhost/medgr2-{self.name}:{digest.hexdigest()[:16]}"


_SOURCES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "crds", "operator", "jobs", ".dockerignore")
OPERATOR = Image("operator", "images/operator.Dockerfile", _SOURCES)
JOBS = Image("jobs", "images/jobs.Dockerfile", _SOURCES)
#: The first process of every pod; with a shell, for pods that need no more than that.
PAUSE = Image(
    "pause",
    """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENTRYPOINT ["/bin/sleep", "2147483647"]
""",
)
ALL = (PAUSE, OPERATOR, JOBS)


def build(image: Image) -> str:
    """Builds an image unless that was done; returns its reference."""
    reference = image.reference
    with _lock():
        if _exists(reference):
            return reference
        _buildah("rm", "--all")  # what builds that were interrupted left behind
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "Dockerfile"
            file.write_text(image.text)
            context = ROOT
            arguments: list[str] = []
            if image is PAUSE:
                context = Path(folder)
                shutil.copy(_program("busybox"), context / "busybox")
            else:
                arguments = ["--build-arg", f"BASE={_base()}", *_trust(Path(folder))]
            _buildah(
                "build", "--isolation=chroot", "--network=host", "--layers", f"--file={file}", f"--tag={reference}",
                *arguments, str(context),
            )  # fmt: skip
        _forget(f"localhost/medgr2-{image.name}", keep=reference)
    return reference


def run(image: Image, script: str) -> str:
    """What a Python script prints in a container of an image, as the image's user and with its environment.

    Raises:
        RuntimeError: it fails; the end of its output is in the message.
    """
    return run_reference(build(image), script)


def run_reference(reference: str, script: str) -> str:
    """The same of an image that was built before."""
    with _lock():  # a build removes containers
        container = _buildah("from", reference).strip()
        try:
            return _buildah("run", "--isolation=chroot", "--env=HOME=/tmp", container, "--", "python", "-c", script)
        finally:
            _buildah("rm", container)


def size(reference: str) -> str:
    """How large an image is unpacked, in words: 357 MB."""
    return _buildah("images", "--format={{.Size}}", f"--filter=reference={reference}").strip()


def send(image: Image, known: Collection[str], sink: IO[bytes]) -> None:
    """Writes an image for containerd, a tar of OCI's layout.

    Args:
        image: built before.
        known: digests of what the receiver has already. They are left out: the dependencies have six gigabytes and
            seldom change.
        sink: where it goes.
    """
    with _lock():
        layout, index, parts = _layout(image)
        with tarfile.open(fileobj=sink, mode="w|") as tar:
            tar.add(layout / "oci-layout", "oci-layout")
            entry = tarfile.TarInfo("index.json")
            entry.size = len(index)
            tar.addfile(entry, io.BytesIO(index))
            for digest in parts:
                if digest not in known:
                    tar.add(_blob(layout, digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")


def _layout(image: Image) -> tuple[Path, bytes, list[str]]:
    """OCI's layout of an image, its index for containerd, and the digests of its parts.

    Uncompressed, so that a layer has the same name as in buildah's storage and is written once: compressing the
    dependencies anew, which `buildah push` does whatever it is told, takes minutes.
    """
    layout = tools.cache() / "images" / image.name
    layout.mkdir(parents=True, exist_ok=True)
    storage, run = _storage()
    _run(
        [
            _program("skopeo"), "--insecure-policy", "copy", "--quiet", "--format=oci",
            "--dest-oci-accept-uncompressed-layers", f"containers-storage:[overlay@{storage}+{run}]{image.reference}",
            f"oci:{layout}:{image.reference}",
        ]
    )  # fmt: skip
    index = json.loads((layout / "index.json").read_text())
    entry = _entry(index, image.reference)
    manifest = json.loads(_blob(layout, entry["digest"]).read_text())
    parts = [entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    index["manifests"] = [entry]
    (layout / "index.json").write_text(json.dumps(index))
    for path in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" not in parts:  # of an older build
            path.unlink()
    entry["annotations"]["io.containerd.image.name"] = image.reference
    return layout, json.dumps(index).encode(), list(dict.fromkeys(parts))


def _entry(index: dict[str, Any], reference: str) -> dict[str, Any]:
    """The manifest of this name. (One that another build of the same name has taken it from stays there without.)"""
    (entry,) = (e for e in index["manifests"] if e.get("annotations", {}).get(_REF_NAME) == reference)
    return dict(entry)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _base() -> str:
    """A Debian with Python."""
    digest = hashlib.sha256(BASE_PACKAGES.encode()).hexdigest()[:8]
    reference = f"localhost/medgr2-base:{RELEASE}-{digest}"
    if _exists(reference):
        return reference
    with _scratch() as folder:
        tree = folder / "root"
        _run([_program("debootstrap"), "--variant=minbase", f"--include={BASE_PACKAGES}", RELEASE, str(tree)])
        shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/usr/sbin:/usr/bin:/sbin:/bin\n")
        _buildah("build", "--isolation=chroot", f"--tag={reference}", str(folder))
    return reference


def _trust(folder: Path) -> list[str]:
    """Lets the build trust the certificates that this computer trusts, without a trace of them in the image."""
    if not _CERTIFICATES.is_dir():
        return []
    bundle = _CERTIFICATES / "ca-certificates.crt"
    (folder / "pip.conf").write_text(f"[global]\ncert = {bundle}\n")
    (folder / "uv.toml").write_text("native-tls = true\n")
    mounts = {_CERTIFICATES: _CERTIFICATES, folder / "pip.conf": "/etc/pip.conf", folder / "uv.toml": "/etc/uv/uv.toml"}
    return [f"--volume={source}:{target}:ro" for source, target in mounts.items()]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _exists(reference: str) -> bool:
    return subprocess.run([*_command(), "inspect", "--type=image", reference], capture_output=True).returncode == 0


def _forget(name: str, keep: str) -> None:
    """Removes older builds of an image, and layers that no image shares."""
    for line in _buildah("images", "--format={{.Name}}:{{.Tag}}", "--filter", f"reference={name}").splitlines():
        if line and line != keep:
            _buildah("rmi", line)
    _buildah("rmi", "--prune")


def _command() -> list[str]:
    root, run = _storage()
    return [_program("buildah"), "--storage-driver=overlay", f"--root={root}", f"--runroot={run}"]


def _storage() -> tuple[Path, Path]:
    """Where the images lie, and where it is noted what is mounted."""
    return tools.cache() / "buildah", Path("/run/medgr2-buildah")


def _buildah(*arguments: str) -> str:
    return _run([*_command(), *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "BUILDAH_FORMAT": "docker"})
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise RuntimeError(f"{' '.join(command[:1] + list(command[5:7]))} failed with {done.returncode}:\n{tail}")
    return done.stdout


def _program(name: str) -> str:
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        raise tools.ToolError(f"{name} is missing: run `python -m tests.cluster build --level node` as root")
    return program


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for gigabytes, for who has the lock; what one who was killed left in it goes first."""
    folder = tools.cache() / "images" / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock() -> Iterator[None]:
    tools.cache().mkdir(parents=True, exist_ok=True)
    with (tools.cache() / "images.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
