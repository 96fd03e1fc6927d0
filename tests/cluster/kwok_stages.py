"""What kwok does with nodes and pods: its `Stage` objects, with the templates that read our annotations.

`kwok.py` says what the annotations mean. An annotation `<name>.a<N>` goes before `<name>` in attempt N of a stage (the
attempt is read from the StageRequest in the container's environment), so that one Job template can fail first and
succeed later.
"""

from __future__ import annotations

from typing import Any

from medgr2_api.stage_contract import REQUEST_ENV

PREFIX = "kwok.medgr2.io/"
MANAGED = f"{PREFIX}managed"
Manifest = dict[str, Any]

# Capacity is written with the status; everything else of a node is its own.
_NODE_READY = """
{{ $now := Now }}
phase: Running
addresses: [{type: InternalIP, address: "127.0.0.1"}, {type: Hostname, address: {{ .metadata.name | Quote }}}]
allocatable: {cpu: 1k, memory: 8Ti, ephemeral-storage: 8Ti, pods: 10k, nvidia.com/gpu: 1k}
capacity: {cpu: 1k, memory: 8Ti, ephemeral-storage: 8Ti, pods: 10k, nvidia.com/gpu: 1k}
nodeInfo: {kubeletVersion: kwok, architecture: amd64, operatingSystem: linux, containerRuntimeVersion: kwok,
  bootID: "", kernelVersion: kwok, kubeProxyVersion: kwok, machineID: "", osImage: kwok, systemUUID: ""}
conditions:
{{ range NodeConditions }}
- {type: {{ .type | Quote }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }},
   message: {{ .message | Quote }}, lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
"""

# Go templates: $now, $notes (the annotations of this attempt) and $request (the StageRequest, or nothing).
_PRELUDE = f"""
{{{{ $now := Now }}}}
{{{{ $request := dict }}}}
{{{{ range .spec.containers }}}}{{{{ range .env }}}}{{{{ if eq .name "{REQUEST_ENV}" }}}}
{{{{ $request = fromJson (replace "$$" "$" (or .value "{{}}")) }}}}
{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}
{{{{ $suffix := printf ".a%v" (or $request.attempt 1) }}}}
{{{{ $notes := dict }}}}
{{{{ range $key, $value := (or .metadata.annotations dict) }}}}
{{{{ if and (hasPrefix "{PREFIX}" $key) (not (hasSuffix $suffix $key)) }}}}
{{{{ $_ := set $notes (trimPrefix "{PREFIX}" $key) $value }}}}{{{{ end }}}}
{{{{ end }}}}
{{{{ range $key, $value := (or .metadata.annotations dict) }}}}
{{{{ if and (hasPrefix "{PREFIX}" $key) (hasSuffix $suffix $key) }}}}
{{{{ $_ := set $notes (trimSuffix $suffix (trimPrefix "{PREFIX}" $key)) $value }}}}{{{{ end }}}}
{{{{ end }}}}
"""

_RUNNING = """
phase: Running
hostIP: "127.0.0.1"
{{ $own := PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
{{ $ip := or (index $notes "pod-ip") $own }}
podIP: {{ $ip | Quote }}
podIPs: [{ip: {{ $ip | Quote }}}]
startTime: {{ $now | Quote }}
conditions:
{{ range list "PodReadyToStartContainers" "Initialized" "Ready" "ContainersReady" }}
- {type: {{ . }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ with .spec.initContainers }}
initContainerStatuses:
{{ range . }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  restartCount: 0
  {{ if eq (or .restartPolicy "") "Always" }}
  started: true
  state: {running: {startedAt: {{ $now | Quote }}}}
  {{ else }}
  started: false
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
  {{ end }}
{{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  started: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
"""

_WAITING = """
{{ $reason := index $notes "waiting" }}
phase: Pending
hostIP: "127.0.0.1"
startTime: {{ $now | Quote }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ range list "Ready" "ContainersReady" }}
- {type: {{ . }}, status: "False", reason: ContainersNotReady, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state: {waiting: {reason: {{ $reason | Quote }}, message: {{ printf "%s: %s" $reason .image | Quote }}}}
{{ end }}
"""

# One more restart of each sidecar.
_SIDECAR_CRASH = """
initContainerStatuses:
{{ $pod := . }}
{{ range $index, $container := .spec.initContainers }}
{{ $status := index $pod.status.initContainerStatuses $index }}
{{ if eq (or $container.restartPolicy "") "Always" }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: {{ add1 (int $status.restartCount) }}
  state: {waiting: {reason: CrashLoopBackOff, message: back-off restarting failed container}}
  lastState: {terminated: {exitCode: 1, reason: Error, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
{{ else }}
- {{ toJson $status }}
{{ end }}
{{ end }}
"""

# $code, $reason and $message must be set.
_ENDED = """
phase: {{ if eq $code 0 }}Succeeded{{ else }}Failed{{ end }}
{{ with index $notes "pod-reason" }}reason: {{ . | Quote }}{{ end }}
conditions:
- {type: Initialized, status: "True", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
{{ range list "Ready" "ContainersReady" }}
- {type: {{ . }}, status: "False", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ with index $notes "pod-reason" }}
- {type: DisruptionTarget, status: "True", reason: TerminationByKubelet, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ $began := or .status.startTime $now }}
{{ with .spec.initContainers }}
initContainerStatuses:
{{ range . }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $began | Quote }}, finishedAt: {{ $now | Quote }}}}
{{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: {{ $code }}
      reason: {{ $reason | Quote }}
      startedAt: {{ $began | Quote }}
      finishedAt: {{ $now | Quote }}
      {{ with $message }}message: {{ . | Quote }}{{ end }}
{{ end }}
"""

# The StageResult of an attempt that ended with $code, unless the annotations say something else.
_RESULT = """
{{ $word := "Failed" }}
{{ if eq $code 0 }}{{ $word = "Succeeded" }}{{ else if eq $code 85 }}{{ $word = "Checkpointed" }}{{ end }}
{{ $hash := or $request.inputHash "" }}
{{ $result := dict "exitCode" $code "reason" $word "message" "simulated by kwok" "inputHash" $hash
   "outputDigest" (ternary (sha256sum $hash) "" (eq $code 0)) "reused" false
   "checkpointStep" (int (or (index $notes "checkpoint-step") -1)) }}
{{ with index $notes "result" }}{{ $result = mergeOverwrite $result (fromJson .) }}{{ end }}
{{ $message = toJson $result }}
"""

_END = (
    """
{{ $code := int (or (index $notes "exit-code") 0) }}
{{ $reason := or (index $notes "reason") (ternary "Completed" "Error" (eq $code 0)) }}
{{ $message := "" }}
{{ if hasKey $notes "message" }}{{ $message = index $notes "message" }}{{ else }}"""
    + _RESULT
    + "{{ end }}"
    + _ENDED
)

# A pod that was deleted while it ran writes its result; one that never started has none.
_TERMINATED = (
    """
{{ $code := int (or (index $notes "term-exit-code") 143) }}
{{ $reason := ternary "Completed" "Error" (eq $code 0) }}
{{ $message := "" }}
{{ if ne .status.phase "Running" }}{{ $code = 137 }}{{ $reason = "ContainerStatusUnknown" }}
{{ else if hasKey $notes "term-message" }}{{ $message = index $notes "term-message" }}
{{ else if ne $code 143 }}"""
    + _RESULT
    + "{{ end }}"
    + _ENDED
)

# In jq: $notes (all annotations) and $attempt, before the condition or value itself.
_JQ_PRELUDE = (
    "(.metadata.annotations // {}) as $notes "
    f'| ([.spec.containers[]?.env[]? | select(.name == "{REQUEST_ENV}") | .value // ""'
    r' | gsub("\\$\\$"; "$") | fromjson? | .attempt][0] // 1) as $attempt | '
)


def _note(name: str, default: str) -> str:
    """The value of an annotation in this attempt, or the default."""
    key = PREFIX + name
    return f'($notes["{key}.a\\($attempt)"] // $notes["{key}"] // "{default}")'


def _milliseconds(name: str, default: int) -> Manifest:
    value = f'{_JQ_PRELUDE}{_note(name, str(default))} + "ms"'
    return {"durationMilliseconds": default, "durationFrom": {"expressionFrom": value}}


def _stage(kind: str, name: str, when: str, step: Manifest, delay: Manifest | None = None) -> Manifest:
    condition = {"key": _JQ_PRELUDE + f"({when})", "operator": "In", "values": ["true"]}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": [condition]},
            **({"delay": delay} if delay else {}),
            "next": step,
        },
    }


def stages() -> list[Manifest]:
    """All stages; at most one fits an object at any time."""
    waiting, run, crashes = _note("waiting", ""), _note("run", ""), _note("sidecar-restarts", "0")
    deleted = ".metadata.deletionTimestamp != null"
    new = '.metadata.deletionTimestamp == null and .status.podIP == null and (.status.phase // "Pending") == "Pending"'
    running = '.metadata.deletionTimestamp == null and .status.phase == "Running"'
    ended = '(.status.phase == "Succeeded" or .status.phase == "Failed")'
    waits_for = "[.status.containerStatuses[]?.state.waiting.reason][0]"
    restarts = "([.status.initContainerStatuses[]?.restartCount] | max // 0)"
    ready = '[.status.conditions[]? | select(.type == "Ready") | .status][0] == "True"'
    ends = f'{running} and .spec.restartPolicy != "Always" and {run} != "forever" and {crashes} == "0"'
    return [
        _stage("Node", "node-ready", f"{ready} | not", {"statusTemplate": _NODE_READY}),
        _stage(
            "Pod",
            "pod-start",
            f'{new} and {waiting} == ""',
            {"statusTemplate": _PRELUDE + _RUNNING},
            _milliseconds("start-delay-ms", 0),
        ),
        _stage(
            "Pod",
            "pod-waiting",
            f'{new} and {waiting} != "" and {waits_for} != {waiting}',
            {"statusTemplate": _PRELUDE + _WAITING},
        ),
        _stage(
            "Pod",
            "pod-sidecar-crash",
            f"{running} and {restarts} < ({crashes} | tonumber)",
            {"statusTemplate": _PRELUDE + _SIDECAR_CRASH},
            {"durationMilliseconds": 100},
        ),
        _stage("Pod", "pod-end", ends, {"statusTemplate": _PRELUDE + _END}, _milliseconds("delay-ms", 200)),
        _stage(
            "Pod",
            "pod-terminate",
            f"{deleted} and ({ended} | not)",
            {"statusTemplate": _PRELUDE + _TERMINATED},
            _milliseconds("term-delay-ms", 100),
        ),
        _stage("Pod", "pod-delete", f"{deleted} and {ended} and (.metadata.finalizers // []) == []", {"delete": True}),
    ]
