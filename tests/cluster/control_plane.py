"""Level 1: etcd, API server, controller manager and scheduler on loopback; needs neither root nor a node.

    with ControlPlane(folder) as cluster:
        cluster.kubectl("get", "namespaces")

Everything it makes lies in one run folder: certificates, etcd's data, logs, pids, kubeconfigs, the audit log.
Another process can use or stop the same cluster: `ControlPlane(folder)` finds what runs there.
"""

from __future__ import annotations

import json
import secrets
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import kubernetes.client
import kubernetes.config

from tests.cluster import tools
from tests.cluster.audit import POLICY, AuditLog
from tests.cluster.pki import Authority
from tests.cluster.processes import Processes
from tests.support.ports import free_port

#: Generous: a busy computer is slow, and a component that fails is seen at once.
START_SECONDS = 180.0
REQUEST_SECONDS = 120.0
ADMIN = "admin"
LOOPBACK = "127.0.0.1"
SERVICE_NETWORK = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
#: Reserved for documentation: the address that the API server announces when nothing but loopback reaches it.
NOWHERE = "192.0.2.1"


@dataclass(frozen=True)
class Settings:
    """What a level above may need otherwise: a real node reaches the API server over a bridge."""

    bind_address: str = LOOPBACK
    advertise_address: str = NOWHERE
    toleration_seconds: int = 5
    """How long pods stay on a node that is unreachable (Kubernetes: 300)."""
    api_server: Sequence[str] = ()
    """More flags of the API server."""


@dataclass(frozen=True)
class _State:
    """What somebody else needs to use the cluster; `state.json` in the run folder."""

    port: int
    token: str
    ports: dict[str, int] = field(default_factory=dict)
    address: str = LOOPBACK
    """Where the API server listens."""


class ControlPlane:
    """A Kubernetes control plane in a run folder."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.folder = folder.absolute()
        self.settings = settings or Settings()
        self.processes = Processes(self.folder)
        self.kubeconfig = self.folder / "kubeconfig"
        self.audit = AuditLog(self.folder / "audit.jsonl")
        self._authority = Authority(self.folder / "pki")

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- what tests use ------------------------------------------------------------------------------------------------

    @property
    def server(self) -> str:
        return f"https://{self._state.address}:{self._state.port}"

    @property
    def ca(self) -> Path:
        return self._authority.certificate

    @property
    def token(self) -> str:
        """Of the user `admin`, a member of system:masters."""
        return self._state.token

    def client(self, kubeconfig: Path | None = None) -> kubernetes.client.ApiClient:
        """A client of the Python package `kubernetes`, as admin unless another kubeconfig is given."""
        configuration = kubernetes.client.Configuration()
        load: Any = kubernetes.config.load_kube_config
        load(str(kubeconfig or self.kubeconfig), client_configuration=configuration)
        configuration.proxy = None  # whatever the environment says: the cluster is on loopback
        return kubernetes.client.ApiClient(configuration)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None
    ) -> str:
        """What kubectl prints. Failures raise with what it said, or are returned when not `check`."""
        where = [f"--kubeconfig={kubeconfig or self.kubeconfig}", f"--cache-dir={self.folder / 'kubectl'}"]
        done = subprocess.run(
            [str(tools.path_of("kubectl")), *where, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=REQUEST_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def established(self, *crds: str) -> None:
        """Waits until CRDs (words of `kubectl wait`) are served."""
        while True:
            try:
                self.kubectl("wait", "--for=condition=Established", *crds, "--timeout=240s")
                return
            except RuntimeError as error:
                if "accessor error" not in str(error):  # what it says of an object without any condition yet
                    raise
                time.sleep(0.1)

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of this user, by a client certificate; another process may make one of the same user now."""
        words = "".join(char if char.isalnum() else "-" for char in user)
        file = f"user-{words}-{secrets.token_hex(4)}"
        self._authority.issue(file, user, groups=groups)
        certificate = {
            "client-certificate": str(self._file(f"{file}.crt")),
            "client-key": str(self._file(f"{file}.key")),
        }
        return self._write_kubeconfig(self.folder / f"{file}.kubeconfig", certificate)

    def service_account_kubeconfig(self, namespace: str, name: str, seconds: int = 3600) -> Path:
        """A kubeconfig of this ServiceAccount, with a token that the API server gave for `seconds`."""
        token = self.kubectl("create", "token", name, "-n", namespace, f"--duration={seconds}s").strip()
        path = self.folder / f"serviceaccount-{namespace}-{name}.kubeconfig"
        return self._write_kubeconfig(path, {"token": token}, namespace)

    def serving_certificate(self, name: str) -> Path:
        """A folder with the certificate of a server on loopback, as webhook servers read it: tls.crt and tls.key."""
        self._file(name).mkdir(exist_ok=True)
        self._authority.issue(f"{name}/tls", name, hosts=[LOOPBACK])
        return self._file(name)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts everything and returns when it serves; what was started is stopped again if something fails."""
        binaries = tools.ensure(tools.CONTROL_PLANE)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._prepare()
            self._start_etcd(binaries["etcd"])
            self._start_api_server(binaries["kube-apiserver"])
            self._start_controllers(binaries)
        except BaseException:
            self.processes.stop()
            raise

    def stop(self) -> None:
        """Ends every process recorded in the run folder, then deletes the folder."""
        self.processes.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def healthy(self) -> bool:
        """Whether a cluster runs in this folder and answers."""
        names = self.processes.records()
        return (
            "kube-apiserver" in names
            and all(map(self.processes.alive, names))
            and self._answers("kube-apiserver", "/readyz")
        )

    @property
    def _state(self) -> _State:
        return _State(**json.loads((self.folder / "state.json").read_text()))

    def _prepare(self) -> None:
        names = ("etcd", "etcd-peer", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        ports = {name: free_port() for name in names}
        state = _State(ports["kube-apiserver"], secrets.token_hex(16), ports, self.settings.bind_address)
        self._write("state.json", json.dumps(asdict(state)))
        self._authority.create()
        self._authority.key_pair("service-accounts")
        self._authority.issue(
            "server",
            "kube-apiserver",
            groups=["system:masters"],
            hosts=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", LOOPBACK, FIRST_SERVICE,
                   self.settings.advertise_address],
        )  # fmt: skip
        self._write("tokens.csv", f'{state.token},{ADMIN},{ADMIN},"system:masters"\n')
        self._write("audit-policy.json", json.dumps(POLICY))
        self._write_kubeconfig(self.kubeconfig, {"token": state.token})

    def _start_etcd(self, binary: Path) -> None:
        client = f"http://{LOOPBACK}:{self._state.ports['etcd']}"
        peer = f"http://{LOOPBACK}:{self._state.ports['etcd-peer']}"
        command: list[str | Path] = [
            binary,
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--logger=zap",
        ]
        self.processes.start("etcd", command)
        self.processes.wait("etcd", lambda: _get(f"{client}/health") == 200, START_SECONDS)

    def _start_api_server(self, binary: Path) -> None:
        settings = self.settings
        command: list[str | Path] = [
            binary,
            f"--etcd-servers=http://{LOOPBACK}:{self._state.ports['etcd']}",
            f"--bind-address={settings.bind_address}",
            f"--secure-port={self._state.port}",
            f"--advertise-address={settings.advertise_address}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            f"--tls-cert-file={self._file('server.crt')}",
            f"--tls-private-key-file={self._file('server.key')}",
            f"--client-ca-file={self.ca}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._file('service-accounts.pub')}",
            f"--service-account-signing-key-file={self._file('service-accounts.key')}",
            f"--kubelet-client-certificate={self._file('server.crt')}",
            f"--kubelet-client-key={self._file('server.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--default-not-ready-toleration-seconds={settings.toleration_seconds}",
            f"--default-unreachable-toleration-seconds={settings.toleration_seconds}",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            f"--audit-log-path={self.audit.path}",
            "--audit-log-maxsize=4096",  # never turned over: tests read all of it
            *settings.api_server,
        ]
        if settings.advertise_address == NOWHERE:
            command.append("--endpoint-reconciler-type=none")
        self.processes.start("kube-apiserver", command)
        self.processes.wait("kube-apiserver", lambda: self._answers("kube-apiserver", "/readyz"), START_SECONDS)

    def _start_controllers(self, binaries: dict[str, Path]) -> None:
        qps = ["--kube-api-qps=500", "--kube-api-burst=1000"]  # the tests wait for the operator, not for these
        flags = {
            "kube-controller-manager": [
                "--use-service-account-credentials=true",
                f"--service-account-private-key-file={self._file('service-accounts.key')}",
                f"--root-ca-file={self.ca}",
                f"--cluster-signing-cert-file={self.ca}",
                f"--cluster-signing-key-file={self._authority.key}",
                "--node-monitor-period=1s",
            ],
            "kube-scheduler": [],
        }
        for name, own in flags.items():
            kubeconfig = self.user_kubeconfig(f"system:{name}")
            common = [
                f"--kubeconfig={kubeconfig}",
                "--leader-elect=false",
                f"--bind-address={LOOPBACK}",
                f"--secure-port={self._state.ports[name]}",
                f"--tls-cert-file={self._file('server.crt')}",
                f"--tls-private-key-file={self._file('server.key')}",
            ]
            self.processes.start(name, [binaries[name], *common, *qps, *own])
        for name in flags:
            self.processes.wait(name, self._check(name, "/healthz"), START_SECONDS)

    # -- details -------------------------------------------------------------------------------------------------------

    def _check(self, name: str, path: str) -> Callable[[], bool]:
        return lambda: self._answers(name, path)

    def _answers(self, name: str, path: str) -> bool:
        state = self._state
        context = ssl.create_default_context(cafile=str(self.ca))
        address = state.address if name == "kube-apiserver" else LOOPBACK
        return _get(f"https://{address}:{state.ports[name]}{path}", state.token, context) == 200

    def _file(self, name: str) -> Path:
        return self._authority.path(name)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)

    def _write_kubeconfig(self, path: Path, user: dict[str, str], namespace: str = "default") -> Path:
        """JSON, which is YAML too."""
        document: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
            "current-context": "test",
        }
        self._write(path.name, json.dumps(document, indent=1))
        return path


def _get(url: str, token: str = "", context: ssl.SSLContext | None = None) -> int:
    """The status of a GET; 0 when nobody answered."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    no_proxy = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
