"""The Grafana dashboards, as code: `python -m monitoring.dashboards` writes them into the chart."""

from __future__ import annotations

from pathlib import Path

from medgr2_api.metrics import MACRO_ACCURACY

from .panels import bars, dashboard, free_graph, graph, number, timeline, variable

FOLDER = Path(__file__).parents[1] / "charts" / "medgr2-operator" / "files" / "dashboards"

_JOB = 'job=~"$job"'
_QUEUE = f'{_JOB}, name="medgr2cycle"'
_CONTROLLER = f'{_JOB}, controller="medgr2cycle"'
_SPACES = 'namespace=~"$namespace"'
_CYCLE = 'namespace="$namespace", cycle="$cycle"'
_STAGE = "{{stage}}@{{iteration}}"


def _quantile(share: float, histogram: str, by: str, selector: str, window: str) -> str:
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({histogram}_bucket{{{selector}}}[{window}])))"


def fleet() -> str:
    """All cycles, and the operator itself."""
    gpu, wasted = f"medgr2_gpu_seconds_total{{{_JOB}}}", f"medgr2_gpu_wasted_seconds_total{{{_JOB}}}"
    window, rate = "$__range", "$__rate_interval"
    phases = f"medgr2_cycle_phase{{{_SPACES}"
    waits = "medgr2_cycle_stage_pending_since_timestamp_seconds"
    rows = {
        "Cycles": [
            number("Running", "Cycles that run", "none", {f'count({phases}, phase="Running"}}) or vector(0)': ""}),
            number(
                "Failed", "Cycles that failed", "none",
                {f'count({phases}, phase="Failed"}}) or vector(0)': ""}, red=1,
            ),
            number(
                "Invalid", "Cycles that cannot be run as they are written", "none",
                {f"count(medgr2_cycle_invalid{{{_SPACES}}}) or vector(0)": ""}, red=1,
            ),
            number(
                "Stages that wait", "To be approved or scheduled", "none",
                {f"count({waits}{{{_SPACES}}}) or vector(0)": ""},
            ),
            number(
                "GPU time wasted", "Share of the GPU time in the time range that was lost with failed attempts",
                "percentunit",
                {f"sum(increase({wasted}[{window}])) / (sum(increase({gpu}[{window}])) > 0) or vector(0)": ""},
                red=0.3,
            ),
            number(
                "Leaders", "Replicas that hold the Lease: 1", "none",
                {f"sum(leader_election_master_status{{{_JOB}}})": ""}, red=2,
            ),
            graph(
                "Cycles by phase", "Of the chosen namespaces", "none",
                {f"count by (phase) ({phases}}})": "{{phase}}"}, stacked=True,
            ),
            graph(
                "Unfinished stages", "Waiting, running and stopping, of all cycles", "none",
                {f"sum by (stage, state) (medgr2_stages_active{{{_JOB}}}) > 0": "{{stage}} {{state}}"}, stacked=True,
            ),
            bars(
                "Longest waiting", "Stages that are not approved or not scheduled, and why", "s",
                {f"topk(10, time() - {waits}{{{_SPACES}}})": "{{namespace}}/{{cycle}} " + _STAGE + " {{reason}}"},
            ),
        ],
        "Stages": [
            graph(
                "Attempts that ended, by outcome", "Of all stages", "none",
                {f"sum by (outcome) (increase(medgr2_stage_attempts_total{{{_JOB}}}[{rate}]))": "{{outcome}}"},
                stacked=True,
            ),
            bars(
                "Attempts lost in the time range", "By stage and outcome", "none",
                {
                    "sum by (stage, outcome) (round(increase(medgr2_stage_attempts_total"
                    f'{{{_JOB}, outcome!~"Succeeded|Reused"}}[{window}]))) > 0': "{{stage}} {{outcome}}"
                },
            ),
            bars(
                "Duration of successful attempts, median", "In the time range, by stage", "s",
                {
                    _quantile(
                        0.5, "medgr2_stage_attempt_duration_seconds", "stage", f'{_JOB}, outcome="Succeeded"', window
                    ): "{{stage}}"
                },
            ),
            bars(
                "Wait for a place, p95", "From the creation of a Job to its first running pod, in the time range", "s",
                {_quantile(0.95, "medgr2_stage_queue_wait_seconds", "stage", _JOB, window): "{{stage}}"},
            ),
            graph(
                "Wait for a place", "Median and p95 of all stages", "s",
                {
                    _quantile(share, "medgr2_stage_queue_wait_seconds", "", _JOB, "30m"): word
                    for share, word in ((0.5, "median"), (0.95, "p95"))
                },
            ),
            graph(
                "Transition latency", "From the end of an attempt to the creation of the next Jobs", "s",
                {
                    _quantile(share, "medgr2_transition_latency_seconds", "", _JOB, "30m"): word
                    for share, word in ((0.5, "median"), (0.99, "p99"))
                },
            ),
        ],
        "GPUs": [
            graph(
                "GPUs in use, on average", "Booked when an attempt ends, over the last hour", "none",
                {
                    f"sum(rate({gpu}[1h])) - sum(rate({wasted}[1h]))": "useful",
                    f"sum(rate({wasted}[1h]))": "wasted",
                },
                width=12, stacked=True,
            ),
            bars(
                "GPU hours by namespace", "Of the cycles that are there", "h",
                {f"sum by (namespace) (medgr2_cycle_gpu_seconds_total{{{_SPACES}}}) / 3600": "{{namespace}}"},
                width=12,
            ),
        ],
        "Operator": [
            graph(
                "Work queue", "Cycles that wait for a worker, and workers that are busy", "none",
                {
                    f"sum(workqueue_depth{{{_QUEUE}}})": "waiting",
                    f"sum(controller_runtime_active_workers{{{_CONTROLLER}}})": "busy workers",
                    f"sum(controller_runtime_max_concurrent_reconciles{{{_CONTROLLER}}} and on (job, instance) "
                    "leader_election_master_status == 1)": "workers",
                },
            ),
            graph(
                "Work queue, p99", "Wait in the queue, and work on a cycle", "s",
                {
                    _quantile(0.99, "workqueue_queue_duration_seconds", "", _QUEUE, rate): "wait",
                    _quantile(0.99, "workqueue_work_duration_seconds", "", _QUEUE, rate): "work",
                    f"max(workqueue_longest_running_processor_seconds{{{_QUEUE}}})": "longest now",
                },
            ),
            graph(
                "Reconciliations", "By result", "ops",
                {f"sum by (result) (rate(controller_runtime_reconcile_total{{{_CONTROLLER}}}[{rate}]))": "{{result}}"},
                stacked=True,
            ),
            graph(
                "API requests", "By method and status, without watches", "reqps",
                {f"sum by (method, code) (rate(rest_client_requests_total{{{_JOB}}}[{rate}]))": "{{method}} {{code}}"},
                stacked=True,
            ),
            graph(
                "API requests, p99", "Duration by method", "s",
                {_quantile(0.99, "rest_client_request_duration_seconds", "verb", _JOB, rate): "{{verb}}"},
            ),
            graph(
                "Since the last resync", "Time since every cycle was last listed and looked at", "s",
                {
                    f"(time() - medgr2_operator_last_resync_timestamp_seconds{{{_JOB}}}) and on (job, instance) "
                    "leader_election_master_status == 1": "{{instance}}"
                },
            ),
            timeline(
                "Leader", "Which replica holds the Lease",
                {f"leader_election_master_status{{{_JOB}}}": "{{instance}}"},
            ),
            graph(
                "Memory", "Resident memory by replica", "bytes",
                {f"process_resident_memory_bytes{{{_JOB}}}": "{{instance}}"},
            ),
            graph(
                "CPU", "Cores in use by replica", "none",
                {f"rate(process_cpu_seconds_total{{{_JOB}}}[{rate}])": "{{instance}}"},
            ),
        ],
    }  # fmt: skip
    variables = [
        variable("job", "Operator", "label_values(medgr2_operator_build_info, job)", several=True),
        variable("namespace", "Namespace", "label_values(medgr2_cycle_phase, namespace)", several=True),
    ]
    return dashboard("medgr2-fleet", "MedGR2 / Fleet", "All cycles, and the operator that runs them", variables, rows)


def cycle() -> str:
    """One cycle."""
    of = f"{{{_CYCLE}}}"
    score = f'{{{_CYCLE}, metric="{MACRO_ACCURACY.name}"}}'
    rows = {
        "Cycle": [
            number("Phase", "What the cycle does", "none", {f"max by (phase) (medgr2_cycle_phase{of})": "{{phase}}"}),
            number(
                "Iteration", "Newest that has started, how many there will be, and of which the models are", "none",
                {f"max(medgr2_cycle_iteration{of})": "started", f"max(medgr2_cycle_iterations_planned{of})": "planned",
                 f"max by (model, stage) (medgr2_cycle_model_iteration{of})": "{{model}} of {{stage}}"},
            ),
            number(
                "Best score", "Macro accuracy on the validation split", "percentunit",
                {f"max(medgr2_cycle_best_score_ratio{of})": ""},
            ),
            number(
                "GPU hours", "Booked when an attempt ends", "h",
                {f"max(medgr2_cycle_gpu_seconds_total{of}) / 3600": "all",
                 f"max(medgr2_cycle_gpu_wasted_seconds_total{of}) / 3600": "wasted"},
            ),
            number(
                "Generator", "Paid to the generator's provider", "currencyUSD",
                {f"max(medgr2_cycle_generator_usd_total{of})": ""},
            ),
            number(
                "Lost attempts", "By cause", "none",
                {f"max by (cause) (medgr2_cycle_retries_total{of})": "{{cause}}"},
            ),
            bars(
                "Scores", "Macro accuracy on the validation split, by checkpoint and iteration", "percentunit",
                {f"max by (checkpoint, iteration) (medgr2_cycle_score_ratio{score})": "{{checkpoint}}@{{iteration}}"},
            ),
            graph(
                "Scores over time", "Macro accuracy on the validation split", "percentunit",
                {f"max by (checkpoint, iteration) (medgr2_cycle_score_ratio{score})": "{{checkpoint}}@{{iteration}}"},
            ),
            graph("Retries", "Attempts lost so far, by cause", "none",
                  {f"max by (cause) (medgr2_cycle_retries_total{of})": "{{cause}}"}),
        ],
        "Stages": [
            timeline(
                "Unfinished stages", "Their state",
                {f"max by (stage, iteration, state) (medgr2_cycle_stage_state{of})": _STAGE + " {{state}}"},
            ),
            graph(
                "Progress", "Of running stages", "percentunit",
                {f"max by (stage, iteration) (medgr2_cycle_stage_progress_ratio{of})": _STAGE},
            ),
            bars(
                "Waiting", "Stages that are not approved or not scheduled, and why", "s",
                {f"time() - medgr2_cycle_stage_pending_since_timestamp_seconds{of}": _STAGE + " {{reason}}"},
            ),
        ],
        "Training (from the stages' own ports)": [
            free_graph("Loss", "Of the last logged step", "none", {f"medgr2_stage_loss{of}": _STAGE}),
            free_graph("Reward", "Mean of the last logged step", "none", {f"medgr2_stage_reward{of}": _STAGE}),
            free_graph(
                "KL divergence", "From the reference policy", "none", {f"medgr2_stage_kl_divergence{of}": _STAGE}
            ),
            graph("Token accuracy", "On the answers' tokens", "percentunit",
                  {f"medgr2_stage_token_accuracy_ratio{of}": _STAGE}),
            graph("Groups without variance", "Prompts whose completions all earned the same", "percentunit",
                  {f"medgr2_stage_zero_variance_groups_ratio{of}": _STAGE}),
            graph("Tokens per second", "Of all processes", "none", {f"medgr2_stage_tokens_per_second{of}": _STAGE}),
            graph(
                "Step, sampling, weights, checkpoint",
                "Duration of an optimizer step; of the last sampling by a vLLM, and of giving it the weights; of the "
                "last checkpoint's writing",
                "s",
                {
                    f"medgr2_stage_step_duration_seconds{of}": _STAGE,
                    f"medgr2_stage_rollout_duration_seconds{of}": f"{_STAGE} sampling",
                    f"medgr2_stage_weights_duration_seconds{of}": f"{_STAGE} weights",
                    f"medgr2_stage_checkpoint_duration_seconds{of}": f"{_STAGE} checkpoint",
                },
            ),
            graph(
                "Steps", "Done and planned", "none",
                {f"medgr2_stage_steps{of}": _STAGE + " done", f"medgr2_stage_steps_planned{of}": _STAGE + " planned"},
            ),
            graph("Time left", "As the stages estimate it", "s", {f"medgr2_stage_eta_seconds{of}": _STAGE}),
            graph(
                "Failed generator requests", "That got no usable answer", "reqps",
                {f"rate(medgr2_stage_failed_requests_total{of}[$__rate_interval])": _STAGE + " {{pod}}"},
            ),
            graph(
                "Generator concurrency", "Requests that may be in flight: fewer after errors", "none",
                {f"medgr2_stage_generator_concurrency{of}": _STAGE + " {{pod}}"},
            ),
            graph(
                "Generator spending", "By the stages' own account", "currencyUSD",
                {f"medgr2_stage_generator_usd_total{of}": _STAGE + " {{pod}}"},
            ),
        ],
    }  # fmt: skip
    variables = [
        variable("namespace", "Namespace", "label_values(medgr2_cycle_phase, namespace)"),
        variable("cycle", "Cycle", 'label_values(medgr2_cycle_phase{namespace="$namespace"}, cycle)'),
    ]
    return dashboard("medgr2-cycle", "MedGR2 / Cycle", "One cycle: its scores, stages and training", variables, rows)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, made in (("fleet", fleet), ("cycle", cycle)):
        (FOLDER / f"{name}.json").write_text(made())


if __name__ == "__main__":
    main()
