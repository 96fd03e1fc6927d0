"""What the tests take from Debian: the real node's container runtime, what builds images, and WordNet.

python -m tests.cluster.system        # installs what is missing (root), or says what keeps the node from running
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Program → the package that has it.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "debootstrap": "debootstrap",
    "busybox": "busybox-static",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
#: The words of D_grade: no program, and no part of the node.
WORDNET = {"/usr/share/wordnet/data.noun": "wordnet-base"}
LEVEL_ENV = "MEDGR2_TEST_LEVEL"
_APT_LOCK = Path("/var/lock/medgr2-apt.lock")


def missing(packages: dict[str, str] = PACKAGES) -> list[str]:
    """Packages that are not installed."""
    return sorted(
        package for program, package in packages.items() if not (shutil.which(program) or Path(program).is_file())
    )


def not_installable() -> str:
    """Why no package can be installed here; empty: it can be tried."""
    if os.environ.get(LEVEL_ENV) != "node":
        return f"packages are only installed where it is asked for ({LEVEL_ENV}=node; make test LEVEL=node)"
    return "" if os.geteuid() == 0 and shutil.which("apt-get") else "only root with apt-get can install it"


def obstacle() -> str:
    """Why no real node can run here, in a sentence; empty: one can (once the packages are installed)."""
    if os.environ.get(LEVEL_ENV, "node") != "node":
        return f"a node was not wanted ({LEVEL_ENV}={os.environ[LEVEL_ENV]})"
    if sys.platform != "linux":
        return "a node needs Linux"
    if os.geteuid() != 0:
        return "a node needs root (containerd, network namespaces)"
    if missing() and (why := not_installable()):
        return f"a node needs {', '.join(missing())}; {why}"
    return ""


def install(packages: dict[str, str] = PACKAGES) -> list[str]:
    """Installs what is missing; returns what was."""
    if not missing(packages):
        return []
    with _APT_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        absent = missing(packages)
        if absent:
            # a package that starts its service on installation would not do so in a container either
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
            for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *absent]):
                subprocess.run(["apt-get", *command], env=quiet, check=True, stdout=subprocess.DEVNULL)
    return absent
