"""A real S3 server on loopback: versitygw over a folder of the test; the test cluster's tool builder builds it once."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import tools
from tests.support.ports import free_port

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

ACCESS, SECRET = "access-of-the-test", "secret-of-the-test"
_START_SECONDS = 30


@dataclass
class S3Server:
    """A running server. Buckets are folders of `folder`; objects are put through its protocol."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> S3FileSystem:
        """pyarrow's, with the owner's keys."""
        from pyarrow import fs

        return fs.S3FileSystem(
            access_key=ACCESS,
            secret_key=SECRET,
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        """Makes the bucket, if it is not there, and objects in it."""
        client = self.client()
        client.create_dir(bucket)
        for key, data in objects.items():
            with client.open_output_stream(f"{bucket}/{key}") as stream:
                stream.write(data)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A running server over an empty folder."""
    program = tools.ensure(["versitygw"])["versitygw"]
    port = free_port()
    served, metadata = folder / "objects", folder / "metadata"
    for path in (served, metadata):
        path.mkdir(parents=True)
    command = [program, "--port", f"127.0.0.1:{port}", "--access", ACCESS, "--secret", SECRET, "--quiet"]
    command += ["posix", "--sidecar", metadata, served]  # not every file system of a test machine has attributes
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(folder)})
    try:
        _wait(process, port, folder / "log")
        yield S3Server(port, served)
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"versitygw does not serve: {log.read_text()[-2000:]}")
