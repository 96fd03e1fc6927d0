"""Cluster and namespace of a command, by kubectl's rules."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from medgr2_api import secret_value
from medgr2_api.stage_contract import ExitCode

from .client import Client

_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeconfigError(Exception):
    """There is no cluster to talk to, or the kubeconfig does not say how."""

    exit_code = ExitCode.USAGE


@asynccontextmanager
async def connect(kubeconfig: str = "", context: str = "") -> AsyncIterator[tuple[Client, str]]:
    """A client, and the namespace to work in unless another is given.

    Args:
        kubeconfig: a file; empty: $KUBECONFIG, ~/.kube/config, and inside a pod its ServiceAccount.
        context: of the kubeconfig; empty: the current one.

    Raises:
        KubeconfigError: there is none, or it cannot be read.
    """
    configuration = kubernetes_client.Configuration()
    configuration.retries = None
    namespace = await _configure(configuration, kubeconfig, context)
    async with kubernetes_client.ApiClient(configuration) as api:
        yield Client(api), namespace


async def _configure(configuration: kubernetes_client.Configuration, kubeconfig: str, context: str) -> str:
    """Fills in server and credentials; returns the namespace."""
    paths = kubeconfig or os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")  # there may be no home
    files = [path for path in paths.split(os.pathsep) if path and os.path.isfile(os.path.expanduser(path))]
    try:
        if not files and not kubeconfig and not context and _IN_POD.is_dir():
            kubernetes_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return (_IN_POD / "namespace").read_text().strip()
        if not files:
            raise KubeconfigError(f"no kubeconfig at {paths}: set KUBECONFIG, or give --kubeconfig")
        loader = await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            os.pathsep.join(files), context or None, client_configuration=configuration, persist_config=False
        )
        _check_credentials(configuration, paths)
        return str((loader.current_context.get("context") or {}).get("namespace") or "default")
    except KubeconfigError:
        raise
    except Exception as error:  # the library fails in many ways over a file that is not as it expects
        text = " ".join(str(error).split())
        raise KubeconfigError(f"{paths}: no kubeconfig that can be read: {type(error).__name__}: {text}") from error


def _check_credentials(configuration: kubernetes_client.Configuration, paths: str) -> None:
    """Reads tokens and passwords as the secrets that they are.

    Raises:
        KubeconfigError: one is not one printable line, and would be quoted by whatever refuses it.
    """
    password = getattr(configuration, "password", None)
    for what, value in [*configuration.api_key.items(), ("password", password)]:
        if not value:
            continue
        scheme, _, token = value.rpartition(" ")
        try:
            secret_value.read(token if scheme in ("Bearer", "Basic") else value, f"{paths}: {what} of the current user")
        except secret_value.SecretError as error:
            raise KubeconfigError(str(error)) from None
