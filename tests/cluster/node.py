"""Level 3: one real node, on which containers run: containerd, runc, kubelet, kube-proxy, CoreDNS. Needs root.

    with ControlPlane(folder, NODE_SETTINGS) as cluster, Node(cluster) as node:
        node.import_image(images.JOBS)

The pods' network is a bridge of this computer (10.244.0.0/24); nothing leaves it. There is one node on a computer at a
time, for bridge and addresses are fixed. Unpacked images stay in the cache folder for the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import kubernetes.client
import psutil  # type: ignore[import-untyped]

from tests.cluster import images, storage, system, tools
from tests.cluster.control_plane import LOOPBACK, ControlPlane, Settings
from tests.cluster.processes import ProcessError
from tests.support.ports import free_port

NAME = "node-0"
BRIDGE = "medgr2-br0"
BRIDGE_IP = "10.244.0.1"
POD_NETWORK = "10.244.0.0/24"
DNS_SERVICE_IP = "10.96.0.10"
DNS_PORT = 1053
START_SECONDS = 180.0
NODE_SETTINGS = Settings(bind_address=BRIDGE_IP, advertise_address=BRIDGE_IP)
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_CGROUPS = Path("/sys/fs/cgroup")
_COMPONENTS = ("containerd", "kubelet", "kube-proxy", "coredns")
_DNS = {"dns": "UDP", "dns-tcp": "TCP"}


class Bridge:
    """The pods' network; it has to be there before the API server binds to its address."""

    STATE = "bridge.json"

    def __init__(self, folder: Path) -> None:
        self._state = folder / self.STATE

    def up(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        if not self._state.exists():
            self._state.write_text(json.dumps({"ip_forward": _FORWARD.read_text().strip()}))
        if not Path(f"/sys/class/net/{BRIDGE}").exists():
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "replace", f"{BRIDGE_IP}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        _FORWARD.write_text("1")  # from a pod to a Service's address and back goes through this computer

    def down(self) -> None:
        if self._state.exists():
            _FORWARD.write_text(json.loads(self._state.read_text())["ip_forward"])
            self._state.unlink()
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            _run("ip", "link", "delete", BRIDGE)


class Node:
    """The node of a running control plane that was started with `NODE_SETTINGS`."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self.folder = control_plane.folder / "node"
        self.socket = self.folder / "containerd.sock"
        #: Images and their unpacked layers: kept between runs, for unpacking several gigabytes takes a minute.
        self.store = tools.cache() / "containerd"

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- what tests use ------------------------------------------------------------------------------------------------

    def import_image(self, image: images.Image) -> str:
        """Builds an image unless that was done, and makes it known to the node; returns its reference."""
        reference = images.build(image)
        if reference not in self._ctr("images", "list", "--quiet").split():
            known = self._ctr("content", "list", "--quiet").split()
            with subprocess.Popen(self._ctr_command("images", "import", "-"), stdin=subprocess.PIPE) as importing:
                assert importing.stdin is not None
                images.send(image, known, importing.stdin)
            if importing.returncode:
                raise ProcessError(f"containerd did not take {reference}")
            self._drop_others(reference)
        return reference

    def folder_for(self, name: str) -> Path:
        """A folder of this computer for a volume, which pods of any user of group 65532 may write to."""
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, 0, 65532)
        path.chmod(0o2775)
        return path

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts everything and returns when the node is ready; what was started is stopped if something fails."""
        if obstacle := system.obstacle():
            raise ProcessError(obstacle)
        system.install()
        binaries = tools.ensure(tools.LEVELS["node"])
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_containerd()
            self._start_dns(binaries["coredns"])
            self._start_kubelet(binaries["kubelet"])
            self._start_proxy(binaries["kube-proxy"])
            self._processes.wait("kubelet", self.is_ready, START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def running(self) -> bool:
        return all(self._processes.alive(name) for name in _COMPONENTS)

    def is_ready(self) -> bool:
        with contextlib.suppress(kubernetes.client.ApiException):
            conditions = self._core.read_node(NAME).status.conditions or []
            return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)
        return False

    def stop(self) -> None:
        """Ends the node and all containers, and takes away mounts, firewall rules and control groups."""
        self._processes.stop(storage.NAME, *(name for name in _COMPONENTS if name != "containerd"))
        self._end_containers()
        self._processes.stop("containerd")
        self._unmount()
        _remove_firewall_rules()
        _remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- components ----------------------------------------------------------------------------------------------------

    def _start_containerd(self) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": "medgr2",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "addresses"),
                        "ranges": [[{"subnet": POD_NETWORK}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        self._write("cni/10-bridge.conflist", json.dumps(network))
        # oom_score_adj cannot be lowered in a container, and where the tests run may be one
        configuration = f"""version = 2
root = "{self.store}"
state = "{self.folder / "containerd"}"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{images.PAUSE.reference}"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
        file = self._write("containerd.toml", configuration)
        self._processes.start("containerd", [_program("containerd"), f"--config={file}"])
        self._processes.wait("containerd", self._containerd_answers, START_SECONDS)
        for container in self._ctr("containers", "list", "--quiet").split():  # of a run that was killed
            self._ctr("containers", "delete", container)
        self.import_image(images.PAUSE)

    def _start_dns(self, binary: Path) -> None:
        """Names of Services and pods; nobody else's are looked up."""
        kubeconfig = self.control_plane.user_kubeconfig("coredns", ["system:masters"])
        file = self._write(
            "Corefile",
            f"""cluster.local:{DNS_PORT} in-addr.arpa:{DNS_PORT} {{
  bind {BRIDGE_IP}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} test
  }}
  cache 1
}}
""",
        )
        self._processes.start("coredns", [binary, "-conf", str(file)])
        labels = {"kubernetes.io/service-name": "kube-dns"}
        ports = [{"name": name, "port": DNS_PORT, "protocol": protocol} for name, protocol in _DNS.items()]
        metadata: dict[str, Any] = {"name": "kube-dns", "namespace": "kube-system"}
        service_ports = [{**port, "port": 53, "targetPort": DNS_PORT} for port in ports]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": DNS_SERVICE_IP, "ports": service_ports},
        }
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [BRIDGE_IP]}],
            "ports": ports,
        }
        both = {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}
        self.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(both))

    def _start_kubelet(self, binary: Path) -> None:
        health = free_port()
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": BRIDGE_IP,
            "healthzPort": health,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.control_plane.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "failCgroupV1": False,
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "resolvConf": str(self._write("resolv.conf", "")),
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "podLogsDir": str(self.folder / "logs"),
            "volumePluginDir": str(self.folder / "plugins"),
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False,  # nobody would take them away again
        }
        kubeconfig = self.control_plane.user_kubeconfig(f"system:node:{NAME}", ["system:nodes"])
        command: list[str | Path] = [
            binary,
            f"--config={self._write('kubelet.json', json.dumps(configuration))}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-pki'}",
            f"--hostname-override={NAME}",
            f"--node-ip={BRIDGE_IP}",
        ]
        self._processes.start("kubelet", command)

    def _start_proxy(self, binary: Path) -> None:
        metrics, health = free_port(), free_port()
        command: list[str | Path] = [
            binary,
            f"--kubeconfig={self.control_plane.user_kubeconfig('system:kube-proxy', ['system:node-proxier'])}",
            f"--cluster-cidr={POD_NETWORK}",
            f"--hostname-override={NAME}",
            f"--metrics-bind-address={LOOPBACK}:{metrics}",
            f"--healthz-bind-address={LOOPBACK}:{health}",
            "--proxy-mode=iptables",
            "--masquerade-all",  # all pods are on one bridge: an answer has to come back through this computer
            "--conntrack-max-per-core=0",
        ]
        self._processes.start("kube-proxy", command)

    # -- details -------------------------------------------------------------------------------------------------------

    @property
    def _processes(self) -> Any:
        return self.control_plane.processes

    @property
    def _core(self) -> Any:
        return kubernetes.client.CoreV1Api(self.control_plane.client())

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _ctr(self, *arguments: str, check: bool = True) -> str:
        return _run(*self._ctr_command(*arguments), check=check)

    def _ctr_command(self, *arguments: str) -> list[str]:
        return [_program("ctr"), f"--address={self.socket}", "--namespace=k8s.io", *arguments]

    def _containerd_answers(self) -> bool:
        return self.socket.exists() and "Server:" in self._ctr("version", check=False)

    def _drop_others(self, reference: str) -> None:
        """Removes older builds of the same image under all their names: kubelet's are `sha256:…`."""
        name = reference.rsplit(":", 1)[0]
        rows = [line.split() for line in self._ctr("images", "list").splitlines()[1:]]
        digests = {row[0]: row[2] for row in rows}
        old = {d for other, d in digests.items() if other.startswith(f"{name}:") and other != reference}
        for other, digest in digests.items():
            if digest in old:
                self._ctr("images", "remove", "--sync", other)

    def _end_containers(self) -> None:
        """Ends the shims of our containerd, which outlive it, and with each its containers."""
        ours = str(self.socket)
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if command and "containerd-shim" in command[0] and ours in command:
                for child in [*process.children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.send_signal(signal.SIGKILL)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(10)

    def _unmount(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def _remove_firewall_rules() -> None:
    """All of kube-proxy's; its own `--cleanup` forgets some. Its chains are told by their names, as it does itself."""
    for program in ("iptables", "ip6tables"):
        for table in ("filter", "nat", "mangle"):
            rules = _run(_program(program), "--table", table, "--list-rules", check=False).splitlines()
            uses = [rule for rule in rules if rule.startswith("-A ") and "KUBE-" in rule]
            chains = [rule for rule in rules if rule.startswith("-N KUBE-")]
            commands = [rule.replace("-A ", "-D ", 1) for rule in uses] + [c.replace("-N", "-X", 1) for c in chains]
            for command in commands:
                _run(_program(program), "--table", table, *shlex.split(command), check=False)


def _remove_cgroups() -> None:
    """kubelet leaves the empty groups of its pods behind."""
    for root in _CGROUPS.glob("*/kubepods"):
        for folder in sorted((path for path in [root, *root.rglob("*")] if path.is_dir()), reverse=True):
            for _ in range(20):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:  # a killed process is still on its way out
                    time.sleep(0.05)
                else:
                    break


def _run(*command: str | Path, check: bool = True) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ProcessError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout + (done.stderr if not check else "")


def _program(name: str) -> str:
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        raise ProcessError(f"{name} is missing: run `python -m tests.cluster build --level node` as root")
    return program
