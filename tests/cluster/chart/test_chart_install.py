"""The chart in a cluster: installed, upgraded and uninstalled; the operator's pods only pretend to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import CRD, Kubectl, eventually, serve_crd
from tests.cluster.helm import CHART, RELEASE, Helm, HelmError, only
from tests.cluster.kwok import behaviour
from tests.support.chart_fixtures import CLAIM, CLAIM_TEMPLATE, chart_env

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
Thing = tuple[str, str, str]
CYCLES = "medgr2cycles.medgr2.io"
#: Kinds that come and go by themselves, and what the API server makes of a CRD.
PASSING = {"events", "events.events.k8s.io", "apiservices.apiregistration.k8s.io"}


def things(cluster: ControlPlane) -> set[Thing]:
    """Kind, namespace and name of everything in the cluster."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    items = json.loads(cluster.kubectl("get", ",".join(set(kinds) - PASSING), "-A", "-o", "json"))["items"]
    return {(f["kind"], f["metadata"].get("namespace", ""), f["metadata"]["name"]) for f in items}


def test_install_upgrade_uninstall(
    own_cluster: ControlPlane, cluster_helm: Helm, home: str, team: str, tmp_path: Path
) -> None:
    before = things(own_cluster)
    cluster_helm.install(home)
    pods = Kubectl(own_cluster, home).get("pods")["items"]
    assert [pod["status"]["phase"] for pod in pods] == ["Running", "Running"]
    with chart_env(own_cluster, team, tmp_path, home) as env:
        env.make_volume()
        env.operator.start()
        forever = {"prepare": behaviour(run="forever")}
        env.apply(workspace={"volumeClaimTemplate": CLAIM_TEMPLATE}, annotations_of=forever)
        env.running("prepare", 0)
        holder = Kubectl(own_cluster, home).get("lease", RELEASE)["spec"]["holderIdentity"]
        assert holder == env.operator.name

        newer = tmp_path / "newer"
        shutil.copytree(CHART, newer)
        crd = newer / "files" / CRD.name
        crd.write_text(crd.read_text().replace("shortNames:\n", "shortNames:\n    - loop\n", 1))
        upgrade = ("upgrade", RELEASE, str(newer), "--namespace", home, "--wait", "--timeout=120s")
        cluster_helm(*upgrade, "--set", "replicas=3", "--set", "podLabels.team=ml")
        eventually(lambda: own_cluster.kubectl("get", "loop", "-n", team, check=False).startswith("NAME"), "the CRD")
        assert Kubectl(own_cluster, home).get("deployment", RELEASE)["status"]["readyReplicas"] == 3
        assert Kubectl(own_cluster, home).get("lease", RELEASE)["spec"]["holderIdentity"] == holder

        env.finish("prepare")
        env.wait("Complete")
        env.deleted()
        assert env.operator.stop() == 0
        cluster_helm.uninstall(home)
        env.kubectl("delete", "pvc", "medgr2-data")  # the test's own, as the volumes
        left = {("CustomResourceDefinition", "", CYCLES), ("PersistentVolumeClaim", team, CLAIM)}

        def more() -> set[Thing]:
            return {thing for thing in things(own_cluster) - before if thing[0] != "PersistentVolume"}

        try:
            eventually(lambda: more() == left, "only the CRD and the claim are left")
        except BaseException:
            print(sorted(more()))
            raise


def test_cycles_outlive_the_release(own_cluster: ControlPlane, cluster_helm: Helm, home: str, team: str) -> None:
    cluster_helm.install(home)
    quickstart = yaml.safe_load((CHART.parents[1] / "examples" / "quickstart.yaml").read_text())
    Kubectl(own_cluster, team).apply(quickstart)
    cluster_helm.uninstall(home)
    assert Kubectl(own_cluster, team).get("medgr2cycle", "quickstart")
    cluster_helm.install(home)
    cluster_helm.uninstall(home)
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        cluster_helm.install(team)
    cluster_helm.install(team, "--take-ownership")
    assert Kubectl(own_cluster, team).get("medgr2cycle", "quickstart")
    cluster_helm.uninstall(team)


def test_only_restricted_pods_get_in(own_cluster: ControlPlane, helm: Helm, home: str) -> None:
    kubectl = Kubectl(own_cluster, home)

    def asked(values: Document) -> str:
        template = only(helm.template(values, namespace=home), "Deployment")["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "operator"}}
        pod["spec"]["serviceAccountName"] = "default"
        return kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))

    assert "created" in asked({})
    for values in (
        {"podSecurityContext": {"runAsNonRoot": None}},
        {"podSecurityContext": {"seccompProfile": None}},
        {"securityContext": {"capabilities": None}},
        {"securityContext": {"allowPrivilegeEscalation": None}},
    ):
        with pytest.raises(RuntimeError, match="violates PodSecurity"):
            asked(values)


def test_who_owns_a_namespace_can_install_for_it(
    own_cluster: ControlPlane, tmp_path: Path, home: str, team: str, cluster_helm: Helm
) -> None:
    """With no right outside the operator's namespace and the watched one; only the CRD is the admin's to install."""
    serve_crd(own_cluster)
    for namespace in (home, team):
        kubectl = Kubectl(own_cluster, namespace)
        rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "owner"}}
        kubectl.apply({**role, "rules": [rule]})
        kubectl("create", "rolebinding", "owner", "--role=owner", "--user=owner")
    owner = Helm(tmp_path, own_cluster.user_kubeconfig("owner"))
    owner.install(home, values={"watchNamespaces": [team], "crds": {"install": False}})
    with chart_env(own_cluster, team, tmp_path, home) as env:
        env.operator.start()
        env.apply()
        env.wait("Complete")
    owner.uninstall(home)
    with pytest.raises(HelmError, match="forbidden"):
        owner.install(home, values={"crds": {"install": False}})
    owner("uninstall", RELEASE, "--namespace", home, "--ignore-not-found")


def test_viewers_and_editors(own_cluster: ControlPlane, cluster_helm: Helm, home: str, team: str) -> None:
    cluster_helm.install(home)
    for role in ("view", "edit", "admin"):
        Kubectl(own_cluster, team)("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}")

    def may(user: str, verb: str, *subresource: str) -> bool:
        what = ("auth", "can-i", verb, "medgr2cycles", *subresource, f"--as={user}", "-n", team)
        output = own_cluster.kubectl(*what, check=False)
        return output.strip() == "yes"

    eventually(lambda: may("view", "watch") and may("edit", "create"), "the roles are aggregated")
    assert [may("view", verb) for verb in ("get", "create", "delete")] == [True, False, False]
    eventually(lambda: all(may(user, verb) for user in ("edit", "admin") for verb in ("get", "delete")), "of both")
    for user in ("edit", "admin"):
        assert not may(user, "update", "--subresource=status"), "only the operator says what was done"
    cluster_helm.uninstall(home)
