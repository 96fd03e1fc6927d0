"""The chart as text: what it renders, what it refuses, and that everything written twice is written the same."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgr2_api.server_address import is_external
from medgr2_operator.render import egress, rendezvous, vllm_sidecar
from medgr2_operator.render.cycle_policy import CyclePolicy
from medgr2_operator.render.egress import Egress
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.runtime.settings import Settings, from_environment
from tests.cluster import prometheus_operator, tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import CRD, eventually
from tests.cluster.helm import CHART, ROOT, Helm, HelmError, environment, only
from tests.cluster.kubeconform import Schemas

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
MONITORED = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podMonitor": {"enabled": True, "interval": "1m"},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "MedGR2"}},
}
CASES: dict[str, Document] = {
    "default": {},
    "namespaced": {"watchNamespaces": ["team-a", "1234"], "crds": {"install": False}},
    "everything": {
        "fullnameOverride": "medgr2",
        "replicas": 3,
        "image": {"repository": "registry.example/operator", "digest": f"sha256:{'0' * 64}"},
        "stageImage": {"repository": "registry.example/jobs", "tag": "1.2-cu128", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "serviceAccount": {"annotations": {"a": "b"}},
        "podLabels": {"team": "ml"},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "system-cluster-critical",
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "networkPolicy": {"from": [PROMETHEUS], "egress": [{"ports": [{"port": 6443}]}]},
        "stageNetworkPolicy": {
            "enabled": True,
            "namespaces": ["team-a"],
            "metricsFrom": [PROMETHEUS],
            "egress": {"enabled": True, "fetch": [{"ipBlock": {"cidr": "10.9.0.0/24"}}]},
        },
        "metrics": MONITORED,
    },
    "nothing": {
        "crds": {"install": False},
        "kueue": {"enabled": False},
        "serviceAccount": {"create": False, "name": "somebodys"},
        "rbac": {"create": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "topologySpreadConstraints": [],
    },
}
EACH = pytest.mark.parametrize("case", CASES)
CLUSTER_KINDS = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


@pytest.fixture(scope="module")
def api(own_cluster: ControlPlane) -> ControlPlane:
    """An API server that knows every kind in the chart, and has the namespaces of the cases."""
    prometheus_operator.install(own_cluster)
    for name in ("medgr2", "team-a", "1234"):
        own_cluster.kubectl("create", "namespace", name)
    return own_cluster


@pytest.fixture(scope="module")
def schemas(api: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Schemas:
    """Those of the API server, which publishes a CRD's some time after it serves it."""
    eventually(lambda: "servicemonitors" in api.kubectl("get", "--raw", "/openapi/v2"), "the schemas of the CRDs")
    return Schemas(api, tmp_path_factory.mktemp("schemas"))


@pytest.fixture(scope="module")
def full_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with an alert and a dashboard, whatever files it has itself."""
    chart = tmp_path_factory.mktemp("full") / "medgr2-operator"
    shutil.copytree(CHART, chart)
    rule = {"alert": "Down", "expr": "up == 0", "annotations": {"summary": "{{ $labels.job }} is down"}}
    (chart / "files" / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "ours", "rules": [rule]}]}))
    shutil.rmtree(chart / "files" / "dashboards", ignore_errors=True)
    (chart / "files" / "dashboards").mkdir()
    (chart / "files" / "dashboards" / "fleet.json").write_text('{"title": "{{ $cycle }}"}\n')
    return chart


# -- it renders --------------------------------------------------------------------------------------------------------


@EACH
def test_lint(helm: Helm, case: str) -> None:
    helm("lint", "--strict", str(CHART), values=CASES[case])


@EACH
def test_kubeconform(helm: Helm, schemas: Schemas, full_chart: Path, case: str) -> None:
    documents = helm.template(CASES[case], chart=full_chart)
    assert schemas.problems(documents) == []
    documents[-1]["speck"] = {}
    assert len(schemas.problems(documents)) == 1


@EACH
def test_the_api_server_takes_it(helm: Helm, api: ControlPlane, full_chart: Path, case: str) -> None:
    documents = yaml.safe_dump_all(helm.template(CASES[case], chart=full_chart))
    output = api.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=documents)
    assert "Warning" not in output
    assert output.count("(server dry run)") == len(list(yaml.safe_load_all(documents)))


def test_one_namespace_needs_nothing_of_the_cluster(helm: Helm) -> None:
    documents = helm.template(CASES["namespaced"])
    assert not CLUSTER_KINDS & {document["kind"] for document in documents}
    roles = [d["metadata"]["namespace"] for d in documents if d["kind"] == "Role"]
    assert sorted(roles) == ["1234", "medgr2", "team-a"]
    everywhere = helm.template({"crds": {"install": False}})
    assert [d["metadata"]["namespace"] for d in everywhere if d["kind"] == "Role"] == ["medgr2"]


def test_nothing_is_in_a_namespace_that_nobody_named(helm: Helm) -> None:
    for document in helm.template(CASES["default"]):
        inside = document["metadata"].get("namespace")
        assert inside == (None if document["kind"] in CLUSTER_KINDS else "medgr2"), document["kind"]


def test_kubernetes_that_is_too_old_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match="incompatible with Kubernetes"):
        helm.template({}, "--kube-version", "1.30.14")
    for version in ("1.31.0", "1.34.4-gke.1047000"):
        assert helm.template({}, "--kube-version", version)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 1},
        {"image": {"repo": "x"}},
        {"image": {"digest": "sha256:1234"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"metrics": {"serviceMonitors": {}}},
        {"watchNamespaces": "team-a"},
        {"watchNamespaces": ["Team A"]},
        {"logLevel": "LOUD"},
        {"workers": 0},
        {"port": 80},
        {"podDisruptionBudget": {"maxUnavailable": 0}},
        {"resources": {"limit": {}}},
        {"stageNetworkPolicy": {"enabled": True}},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_is_refused(helm: Helm, values: Document) -> None:
    with pytest.raises(HelmError, match=next(iter(values))):
        helm.template(values)


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert _without_schema(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "") == []
    assert _open(schema, "") == []


def _without_schema(value: Any, schema: Document, path: str) -> list[str]:
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    return [f"{path}.{name}" for name in value if name not in known] + [
        nested
        for name in value.keys() & known.keys()
        for nested in _without_schema(value[name], known[name], f"{path}.{name}")
    ]


def _open(schema: Document, path: str) -> list[str]:
    """Objects of the schema with names of their own that take others, too."""
    known = schema.get("properties")
    if known is None:
        return []
    here = [] if schema.get("additionalProperties") is False else [path]
    return here + [nested for name, item in known.items() for nested in _open(item, f"{path}.{name}")]


def test_the_operator_understands_its_environment(helm: Helm) -> None:
    settings = from_environment(environment(only(helm.template({}), "Deployment"), "pod-0"))
    here = {"namespace": "medgr2", "identity": "pod-0", "state_dir": "/var/lib/medgr2"}
    assert settings == Settings.model_validate({**Settings().model_dump(), **here})
    values = {"watchNamespaces": ["a", "b"], "workers": 3, "resyncSeconds": 7200, "port": 9090, "logLevel": "DEBUG"}
    settings = from_environment(environment(only(helm.template(CASES["everything"] | values), "Deployment"), "pod-0"))
    assert (settings.watched, settings.workers, settings.resync_seconds) == (("a", "b"), 3, 7200)
    assert (settings.port, settings.log_level, settings.lease_name) == (9090, "DEBUG", "medgr2")
    assert (settings.image, settings.image_pull_policy) == ("registry.example/jobs:1.2-cu128", "Always")


def test_cycles_only(helm: Helm) -> None:
    switches = ("allowPatches", "allowServiceAccounts", "allowHostAccess")
    policy = {**dict.fromkeys(switches, False), "allowedImages": ["a.b/c", "d.e"], "allowedSecrets": ["medgr2-*"]}
    found = from_environment(environment(only(helm.template({"cyclePolicy": policy}), "Deployment"), "pod-0"))
    assert found.render().policy == CyclePolicy(False, False, False, ("a.b/c", "d.e"), ("medgr2-*",), "medgr2")
    assert from_environment(environment(only(helm.template({}), "Deployment"), "pod-0")).render().policy == CyclePolicy(
        refused_namespace="medgr2"
    )


def test_no_service_looks_like_a_setting(helm: Helm) -> None:
    """A Service medgr2-operator would give its namespace's pods MEDGR2_OPERATOR_PORT=tcp://…"""
    assert only(helm.template({}), "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_images(helm: Helm) -> None:
    def image(values: Document) -> str:
        (container,) = only(helm.template(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        return str(container["image"])

    assert image({}) == f"ghcr.io/medgr2/medgr2-operator:{_version()}"
    assert image({"image": {"tag": "next"}}) == "ghcr.io/medgr2/medgr2-operator:next"
    assert image(CASES["everything"]) == f"registry.example/operator@sha256:{'0' * 64}"


# -- who may connect ---------------------------------------------------------------------------------------------------


def test_stages_are_closed_but_for_training(helm: Helm) -> None:
    policy = only(helm.template(CASES["everything"]), "NetworkPolicy", "medgr2-stages")
    assert policy["metadata"]["namespace"] == "team-a"
    progress, training = policy["spec"]["ingress"]
    assert progress["ports"] == [{"port": "progress", "protocol": "TCP"}]
    assert progress["from"][1:] == [PROMETHEUS]
    operator = only(helm.template(CASES["everything"]), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert progress["from"][0]["podSelector"]["matchLabels"].items() <= operator.items()
    (peer,) = training["from"]
    assert peer == {"podSelector": policy["spec"]["podSelector"]}, "pods of the same namespace"

    def opened(port: int) -> bool:
        return any(entry["port"] <= port <= entry["endPort"] for entry in training["ports"])

    closed = {port for port in range(1024, 65536) if not opened(port)}
    assert closed == {vllm_sidecar.PORT, RenderSettings(image="x").progress_port}
    assert opened(rendezvous.PORT)


def _ways_out(helm: Helm, **ways: Any) -> dict[Egress, list[Document] | None]:
    """Where pods of each kind may connect, beyond DNS and each other; None: anywhere."""
    values = {"enabled": True, "namespaces": ["team-a"], "egress": {"enabled": True, **ways}}
    documents = helm.template({"fullnameOverride": "medgr2", "stageNetworkPolicy": values})
    policies = [each for each in documents if each["metadata"]["name"].startswith("medgr2-stages-egress")]
    found: dict[Egress, list[Document] | None] = {}
    for kind in Egress:
        chosen = [policy for policy in policies if _selects(policy, kind)]
        assert len(chosen) <= 1
        found[kind] = _peers(chosen[0]) if chosen else None
    assert [_selects(policy, None) for policy in policies].count(True) == 1, "what has no label goes nowhere"
    return found


def _selects(policy: Document, kind: Egress | None) -> bool:
    (expression,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert expression["key"] == egress.LABEL
    return (str(kind) in expression["values"]) is (expression["operator"] == "In")


def _peers(policy: Document) -> list[Document]:
    assert policy["spec"]["policyTypes"] == ["Egress"]
    dns, among, *others = policy["spec"]["egress"]
    assert dns["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    stages = policy["spec"]["podSelector"]["matchLabels"]
    assert among == {"to": [{"podSelector": {"matchLabels": stages}}]}
    assert all("ports" not in rule for rule in others)
    return [peer for rule in others for peer in rule["to"]]


def test_each_stage_connects_only_where_it_needs_to(helm: Helm) -> None:
    server = [{"namespaceSelector": {"matchLabels": {"team": "models"}}}]
    mirror = [{"ipBlock": {"cidr": "10.9.0.0/24"}}]
    assert _ways_out(helm, site=server, fetch=mirror) == {
        Egress.NONE: [], Egress.SITE: server, Egress.FETCH: mirror, Egress.EXTERNAL: None,
    }  # fmt: skip
    assert _ways_out(helm, site=server, fetch=[])[Egress.FETCH] == []
    default = _ways_out(helm)
    assert (default[Egress.NONE], default[Egress.FETCH], default[Egress.EXTERNAL]) == ([], None, None)
    site = default[Egress.SITE]
    assert site is not None
    networks = [ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in site if "ipBlock" in peer]
    for address in ("10.1.2.3", "172.16.0.1", "192.168.0.7", "fd12::1", "8.8.8.8", "169.254.169.254", "100.64.0.1"):
        bracketed = f"[{address}]" if ":" in address else address
        inside = any(ipaddress.ip_address(address) in network for network in networks)
        assert inside is not is_external(f"http://{bracketed}/v1"), "what counts as inside is what may be reached"


def test_the_ways_out_are_open_unless_they_are_closed(helm: Helm) -> None:
    documents = helm.template({"stageNetworkPolicy": {"enabled": True, "namespaces": ["team-a"]}})
    assert [d["spec"]["policyTypes"] for d in documents if d["kind"] == "NetworkPolicy"] == [["Ingress"], ["Ingress"]]


def test_no_way_out_is_closed_in_vain(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"needs stageNetworkPolicy\.enabled"):
        helm.template({"stageNetworkPolicy": {"namespaces": ["team-a"], "egress": {"enabled": True}}})


def test_the_labels_and_the_port_are_those_of_a_stage(helm: Helm) -> None:
    documents = helm.template(CASES["everything"])
    golden = list(yaml.safe_load_all((ROOT / "tests/unit/render/golden/plain.yaml").read_text()))
    pod = only(golden, "Job")["spec"]["template"]
    among = [each for each in documents if each["kind"] == "NetworkPolicy"]
    policies = [each for each in among if each["metadata"]["name"].startswith("medgr2-stages")]
    assert len(policies) == 4, "of what comes in, and of three ways out"
    monitor = only(documents, "PodMonitor")
    for selector in (*(policy["spec"]["podSelector"] for policy in policies), monitor["spec"]["selector"]):
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert str(Egress(pod["metadata"]["labels"][egress.LABEL]))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


def test_alerts_and_dashboards_are_taken_word_for_word(helm: Helm, full_chart: Path) -> None:
    documents = helm.template({"metrics": MONITORED}, chart=full_chart)
    alerts = yaml.safe_load((full_chart / "files" / "alerts.yaml").read_text())
    assert only(documents, "PrometheusRule")["spec"] == alerts
    dashboard = only(documents, "ConfigMap")
    assert dashboard["data"] == {"fleet.json": (full_chart / "files" / "dashboards" / "fleet.json").read_text()}
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert not {"PrometheusRule", "ConfigMap", "ServiceMonitor", "PodMonitor"} & {
        document["kind"] for document in helm.template({}, chart=full_chart)
    }


# -- written twice, equal ----------------------------------------------------------------------------------------------


def test_the_crd_is_the_generated_one(helm: Helm) -> None:
    assert (CHART / "files" / CRD.name).read_text() == CRD.read_text(), "run make crds"
    rendered = only(helm.template({}), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered["metadata"].pop("labels")["app.kubernetes.io/managed-by"] == "Helm"
    assert rendered == yaml.safe_load(CRD.read_text())


def test_the_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["appVersion"], chart["version"]) == (_version(), _version())


def test_the_readme_is_up_to_date(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    helm_docs = tools.ensure(["helm-docs"])["helm-docs"]
    subprocess.run([helm_docs, "--sort-values-order=file"], cwd=tmp_path / "chart", check=True)
    assert (tmp_path / "chart" / "README.md").read_text() == (CHART / "README.md").read_text(), "run make chart-docs"


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
