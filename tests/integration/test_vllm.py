"""A real vLLM beside transformers: the same prompts, the same words, the same log-probabilities; and what ends it.

One server for all tests here, and a second one where the first has been killed: each start costs a minute of CPU.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoProcessor

from medgr2_api import paths
from medgr2_api.stage_contract import (
    NUM_PROC_PER_NODE_ENV,
    REQUEST_ENV,
    SECRETS_ENV,
    VLLM_ENDED,
    WORKSPACE_ENV,
    ExitCode,
    Shard,
    StageRequest,
)
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.engine import environment
from medgr2_jobs.engine.in_process import InProcessSampler
from medgr2_jobs.engine.served_adapters import check_logprobs
from medgr2_jobs.engine.token_client import Address, TokenClient
from medgr2_jobs.engine.vllm_engine import ServedEngine, UsersServer
from medgr2_jobs.engine.vllm_sampler import VLLMSampler
from medgr2_jobs.engine.vllm_sidecar import SidecarServers
from medgr2_jobs.errors import Checkpointed, ConfigError, LogprobsDisagree
from medgr2_jobs.evaluate import scoring
from medgr2_jobs.evaluate.controls import BlankEncoder
from medgr2_jobs.models import checkpoint as checkpoints
from medgr2_jobs.models.checkpoint import Checkpoint
from medgr2_jobs.models.generation import Decoding
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.prompts import answers
from medgr2_jobs.runner.main import execute, main
from medgr2_jobs.stages import evaluate, grpo
from medgr2_jobs.store.rows.evaluation import Prediction
from medgr2_jobs.store.rows.prepared import Item
from medgr2_jobs.store.rows.training import Preference
from medgr2_operator.render import vllm_sidecar, volumes
from tests.support import export_fixtures, fork_runner, servable
from tests.support.policy_fixtures import DATA, PolicyWorkspace, in_child
from tests.support.ports import free_port

FORMAT = AnswerFormat.OPTION_TEXT
#: Questions that stage evaluate has answered together here: some batches in each of two shards.
SMALL = 4
#: One thread: two test processes share two cores. Short answers, so a short cache.
ARGUMENTS = ("--max-num-seqs=64", "--max-model-len=1024", "--max-num-batched-tokens=2048")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not environment.here(environment.Build.CPU).complete,
        reason="vLLM's environment is not there: run `medgr2 vllm install`",
    ),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return servable.build(tmp_path_factory.mktemp("vllm"))


@dataclass(frozen=True)
class Server:
    """The operator's sidecar, as its container runs it."""

    client: TokenClient
    process: psutil.Process
    folder: Path
    """What it shares with the stage."""

    def kill(self) -> None:
        """The server, not the sidecar: what the kernel does to a process that takes too much memory."""
        for one in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.fixture(scope="module")
def server(workspace: PolicyWorkspace) -> Iterator[Server]:
    made, folder, port = environment.here(environment.Build.CPU), workspace.root / "model-server", free_port()
    folder.mkdir()
    script = vllm_sidecar.POLICY.replace(volumes.MODEL_SERVER_DIR, str(folder))
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", *ARGUMENTS]
    options += ["--enable-scale-out", "--generation-config", "vllm", "--limit-mm-per-prompt", '{"image":1,"video":0}']
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCHDYNAMO_DISABLE": "1"}
    settings["VLLM_CACHE_ROOT"] = str(made.folder / "cache")  # as a child's: it looks at each model class once
    path = {"PATH": f"{made.python.parent}:{os.environ['PATH']}"}
    with (workspace.root / "sidecar.log").open("w") as log:
        sidecar = subprocess.Popen(
            ["sh", "-c", script, "vllm", *options], stdout=log, stderr=log, env={**kept, **settings, **offline, **path}
        )
    servers = SidecarServers(f"http://127.0.0.1:{port}", folder)
    try:
        served = servers.serving(servable.base(workspace), servable.RANK, lambda: None)
        yield Server(served.client, psutil.Process(sidecar.pid), folder)
    finally:
        children = psutil.Process(sidecar.pid).children(recursive=True)
        sidecar.terminate()
        assert sidecar.wait(60) == 0
        assert not psutil.wait_procs(children, timeout=60)[1], "the sidecar leaves its server behind"


@pytest.fixture(scope="module")
def items(workspace: PolicyWorkspace) -> list[Item]:
    prepare = workspace.context(workspace.preferences()).input("prepare")
    return prepare.rows(Item)[:16]


@pytest.fixture(params=["base", "adapters"])
def asked(request: pytest.FixtureRequest, workspace: PolicyWorkspace) -> Checkpoint:
    return servable.base(workspace) if request.param == "base" else servable.policy(workspace)


def sampler(server: Server, checkpoint: Checkpoint) -> VLLMSampler:
    return ServedEngine(UsersServer(server.client.address)).sampler(checkpoint)


def turns(items: list[Item]) -> list[PromptResponse]:
    prompts = [answers.prompt_of(item, FORMAT) for item in items]
    return [
        *(PromptResponse(prompt.image_sha256, prompt.text) for prompt in prompts),
        PromptResponse(None, prompts[0].text),
        PromptResponse(prompts[0].image_sha256, prompts[0].text, "<think>The"),
    ]


def test_it_writes_what_transformers_writes(
    server: Server, workspace: PolicyWorkspace, items: list[Item], asked: Checkpoint
) -> None:
    encoder = Encoder(asked.processor(), workspace.images)
    there = sampler(server, asked).answers(encoder, turns(items), max_new_tokens=24)
    assert there == InProcessSampler(asked).answers(encoder, turns(items), max_new_tokens=24)
    assert len(set(there)) > 3, "random models say different things to different pictures"


@pytest.mark.parametrize("answer_format", [AnswerFormat.OPTION_TEXT, AnswerFormat.LETTER])
def test_it_finds_each_option_as_likely(
    server: Server, workspace: PolicyWorkspace, items: list[Item], asked: Checkpoint, answer_format: AnswerFormat
) -> None:
    encoder = Encoder(asked.processor(), workspace.images)
    rows = turns(items)[: len(items)]
    contexts = ["<answer>", "<think>it is</think><answer>"] * (len(items) // 2)
    questions = [
        scoring.question(encoder, row, context, item.options, answer_format)
        for row, context, item in zip(rows, contexts, items, strict=True)
    ]
    there = sampler(server, asked).option_logprobs(encoder, questions)
    here = InProcessSampler(asked).option_logprobs(encoder, questions)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-3)
        assert sorted(range(len(ours)), key=ours.__getitem__) == sorted(range(len(ours)), key=theirs.__getitem__)


def test_it_samples_what_transformers_finds_as_likely_and_never_a_special_token(
    server: Server, workspace: PolicyWorkspace, items: list[Item], asked: Checkpoint
) -> None:
    """A sampled text, scored as an option by transformers, has the log-probability that the server told."""
    encoder = Encoder(asked.processor(), workspace.images)
    rows, there = turns(items)[:6], sampler(server, asked)
    groups = [(row, 4) for row in rows]
    drawn = there.samples(encoder, groups, 16, Decoding(1.0, 1.0), seed=7)
    assert drawn == there.samples(encoder, groups, 16, Decoding(1.0, 1.0), seed=7)
    assert drawn != there.samples(encoder, groups, 16, Decoding(1.0, 1.0), seed=8)
    assert all(len({sample.token_ids for sample in some}) > 1 for some in drawn)
    questions = [
        scoring.OptionQuestion(row, (), tuple(sample.token_ids for sample in some))
        for row, some in zip(rows, drawn, strict=True)
    ]
    here = InProcessSampler(asked).option_logprobs(encoder, questions)
    for values, some in zip(here, drawn, strict=True):
        assert [sum(sample.logprobs) for sample in some] == pytest.approx(values, abs=1e-3)
    special = {index for index, token in encoder.tokenizer.added_tokens_decoder.items() if token.special}
    ends = {encoder.tokenizer.eos_token_id}
    assert not (special - ends) & {token for some in drawn for sample in some for token in sample.token_ids}


def test_adapters_loaded_while_it_runs_change_what_it_says(
    server: Server, workspace: PolicyWorkspace, items: list[Item]
) -> None:
    said = []
    for checkpoint in (servable.base(workspace), servable.policy(workspace)):
        encoder = Encoder(checkpoint.processor(), workspace.images)
        said.append(sampler(server, checkpoint).answers(encoder, turns(items), max_new_tokens=12))
    assert said[0] != said[1]
    served = {model["id"] for model in server.client.models()}
    assert len(served) >= 2, "the base model and an adapter"


def chatted(server: Server, name: str, workspace: PolicyWorkspace, items: list[Item]) -> list[str]:
    """What a client that knows nothing of us is answered, greedily: OpenAI's chat, the export's own template."""
    said = []
    for item in items:
        picture = base64.b64encode(workspace.images.read(item.image_sha256)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": answers.prompt_of(item, FORMAT).text},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 32}
        told = server.client.post("/v1/chat/completions", body)
        said.append(told["choices"][0]["message"]["content"])
    return whole(said)


def whole(texts: list[str]) -> list[str]:
    """Without a character that the longest answer cuts off: vLLM leaves it out, transformers marks its bytes."""
    return [text.rstrip("\ufffd") for text in texts]


def test_an_export_is_served_merged_and_as_adapters(
    server: Server, workspace: PolicyWorkspace, items: list[Item], tmp_path: Path
) -> None:
    """The server's base model is what `medgr2 export` merged (`servable`); its adapters are exported here."""
    merged = servable.base(workspace).base
    assert (merged / "README.md").is_file(), "the folder is an export, model card and all"
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    name = server.client.models()[0]["id"]
    there = chatted(server, name, workspace, items := items[:6])
    assert there == whole(export_fixtures.stock(merged, workspace, items))
    adapter = servable.exported(workspace, tmp_path / "out") / "adapter"
    server.client.post("/v1/load_lora_adapter", {"lora_name": "export", "lora_path": str(adapter)})
    adapted = chatted(server, "export", workspace, items)
    assert adapted == whole(export_fixtures.stock(merged, workspace, items, adapter))
    assert adapted != there
    server.client.post("/v1/unload_lora_adapter", {"lora_name": "export"})


def test_it_is_shown_the_control_s_picture(server: Server, workspace: PolicyWorkspace, items: list[Item]) -> None:
    base = servable.base(workspace)
    processor, rows = base.processor(), turns(items)[: len(items)]
    blank = BlankEncoder(processor, workspace.images)
    there = sampler(server, base).answers(blank, rows, max_new_tokens=24)
    assert there == InProcessSampler(base).answers(blank, rows, max_new_tokens=24)
    assert there != sampler(server, base).answers(Encoder(processor, workspace.images), rows, max_new_tokens=24)


def test_another_processor_is_noticed_at_the_first_answer(
    server: Server, workspace: PolicyWorkspace, items: list[Item]
) -> None:
    base = servable.base(workspace)
    processor = AutoProcessor.from_pretrained(base.base, local_files_only=True)
    size = processor.image_processor.size
    size["longest_edge"] = size["shortest_edge"] = 28 * 28
    with pytest.raises(ConfigError, match="another prompt than training does"):
        sampler(server, base).answers(Encoder(processor, workspace.images), turns(items)[:2], max_new_tokens=4)


def test_a_refusal_ends_for_good_in_the_server_s_words(
    server: Server, workspace: PolicyWorkspace, items: list[Item]
) -> None:
    base = servable.base(workspace)
    encoder = Encoder(base.processor(), workspace.images)
    with pytest.raises(ConfigError, match=r"refuses /inference/v1/generate \(400\).*maximum"):
        sampler(server, base).answers(encoder, [PromptResponse(None, "cyst " * 2000)], max_new_tokens=4)
    wrong = ServedEngine(UsersServer(Address(server.client.address.root, "another")))
    with pytest.raises(ConfigError, match="does not take the API key"):
        wrong.sampler(base).answers(encoder, turns(items), max_new_tokens=4)


def test_a_stop_ends_the_asking_at_once(server: Server, workspace: PolicyWorkspace, items: list[Item]) -> None:
    base = servable.base(workspace)
    encoder = Encoder(base.processor(), workspace.images)

    def stop(done: int) -> None:
        raise Checkpointed(done)

    with pytest.raises(Checkpointed):
        sampler(server, base).answers(encoder, turns(items) * 50, max_new_tokens=200, between=stop)


def secret(server: Server, folder: Path) -> dict[str, Any]:
    """`policy.engine` of a stage that asks this server; its key lies below the folder."""
    (folder / "vllm").mkdir(parents=True, exist_ok=True)
    (folder / "vllm" / "key").write_text(server.client.address.api_key)
    return {
        "server": {
            "baseURL": server.client.address.root + "/v1",
            "apiKeySecretRef": {"name": "vllm", "key": "key"},
        }
    }


def test_evaluate_measures_the_same_with_either_engine(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    rows: list[list[Prediction]] = []
    for engine in ({"transformers": {}}, secret(server, tmp_path)):
        parameters = {"iteration": 1, "controls": ["BlankImage"], "engine": engine}
        reader = workspace.run(workspace.request("evaluate", parameters, ["prepare", "sft"]))
        assert reader is not None
        rows.append(reader.rows(Prediction))
    assert rows[0]
    for ours, theirs in zip(*rows, strict=True):
        assert (theirs.item_id, theirs.condition, theirs.scoring, theirs.text, theirs.predicted) == (
            ours.item_id, ours.condition, ours.scoring, ours.text, ours.predicted,
        )  # fmt: skip
        assert theirs.option_logprobs == pytest.approx(ours.option_logprobs, abs=1e-3)


@pytest.mark.parametrize("stage", ["evaluate", "preferences"])
def test_two_shards_one_of_them_killed_give_what_one_process_gives(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    monkeypatch.setattr(evaluate, "_BATCH", SMALL)
    engine = secret(server, tmp_path)
    if stage == "evaluate":
        whole = workspace.request(stage, {"iteration": 1, "controls": ["BlankImage"]}, ["prepare", "sft"], name="whole")
    else:
        whole = preferences(workspace, engine).model_copy(update={"input_hash": "c" * 64})
    whole = whole.model_copy(update={"parameters": {**whole.parameters, "engine": engine}})
    straight = workspace.run(whole)
    assert straight is not None
    divided = whole.model_copy(update={"input_hash": "d" * 64})
    first, second = (divided.model_copy(update={"shard": Shard(index=index, count=2)}) for index in (0, 1))
    assert execute(first, workspace.root) == ExitCode.OK
    child = fork_runner.context(["tests.integration.test_vllm"]).Process(
        target=stage_process, args=(second, workspace.root)
    )
    child.start()
    folder = workspace.root / paths.artifact(stage, divided.input_hash) / paths.shard(1)
    wait_for(lambda: list(folder.glob("work/*/*.json")) or not child.is_alive())
    child.kill()
    child.join()
    assert not (folder / paths.MANIFEST).exists(), "killed in the middle"
    again = second.model_copy(update={"attempt": 2})
    assert execute(again, workspace.root) == ExitCode.OK
    kind = Prediction if stage == "evaluate" else Preference
    together = workspace.reader(divided)
    assert len(together.shards) == 2

    def said(rows: Sequence[Any]) -> list[Any]:
        return sorted((row.item_id, row.condition, row.text) if stage == "evaluate" else row.sample_id for row in rows)

    assert said(together.rows(kind)) == said(straight.rows(kind))


def test_relabel_asks_the_server(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    own = workspace.relabel(name="engine", maxQuestions=8)
    parameters = {**own.parameters, "engine": secret(server, tmp_path)}
    reader = workspace.run(own.model_copy(update={"parameters": parameters}))
    assert reader is not None
    assert reader.manifest.counters["asked"] == 8


def preferences(workspace: PolicyWorkspace, engine: dict[str, Any], attempt: int = 1) -> StageRequest:
    """Nine parts; the engine is no part of the request's hash here, so that attempts go on from each other's parts."""
    sampling = {"prompts": 40, "samplesPerPrompt": 32, "temperature": 1.0, "topP": 1.0, "seedFraction": 0.5}
    asked = workspace.request(
        "preferences", {"preferences": sampling, "grades": {}}, [*DATA, "policy"], attempt=attempt, name="killed"
    )
    return asked.model_copy(update={"parameters": {**asked.parameters, "engine": engine}})


def parts(workspace: PolicyWorkspace, request: StageRequest) -> list[Path]:
    """Finished ones."""
    return sorted((workspace.root / paths.artifact(request.stage, request.input_hash)).glob("work/*/samples-*.json"))


def wait_for(condition: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def rollouts(workspace: PolicyWorkspace, engine: dict[str, Any], **changes: Any) -> StageRequest:
    """GRPO by adapters that go on from those of SFT."""
    trainer = {"max_steps": 3, "per_device_train_batch_size": 8, "max_completion_length": 12, **changes}
    more = {name: trainer.pop(name) for name in ("attempt", "name", "resampleGroups") if name in trainer}
    return workspace.grpo(trainer, lora=servable.LORA, engine=engine, learningRate=0.02, promptsPerStep=8, **more)


def log_of(workspace: PolicyWorkspace, request: StageRequest) -> list[dict[str, Any]]:
    (path,) = (workspace.root / paths.artifact(request.stage, request.input_hash)).rglob("log.json")
    steps: list[dict[str, Any]] = [entry for entry in json.loads(path.read_text()) if "reward" in entry]
    return steps


DIFFERENCE = "sampling/sampling_logp_difference/max"


def test_grpo_samples_from_the_newest_adapters(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and trainer find every token equally likely at each step: the weights arrive. Nothing is left of them."""
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    request = rollouts(workspace, secret(server, tmp_path), name="served", resampleGroups=1)
    reader = workspace.run(request)
    assert reader is not None
    steps = log_of(workspace, request)
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    assert all(entry[DIFFERENCE] < 1e-3 for entry in steps), [entry[DIFFERENCE] for entry in steps]
    assert all(entry["weights_seconds"] > 0 and entry["rollout_seconds"] > 0 for entry in steps)
    assert all(entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-2) for entry in steps)
    assert all(0 <= entry["resampled_groups"] <= 1 for entry in steps)
    assert not any((workspace.root / paths.artifact("grpo", request.input_hash)).rglob("served")), (
        "adapters are removed"
    )
    assert reader.manifest.counters["groups"] == 24
    assert not any("grpo-" in str(model["id"]) for model in server.client.models())


def test_each_of_two_processes_asks_for_its_own_prompts(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data parallel by gloo: the main process gives the server the weights, and both sample from them."""
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    monkeypatch.setenv(NUM_PROC_PER_NODE_ENV, "2")
    request = rollouts(workspace, secret(server, tmp_path), name="two", max_steps=2)
    monkeypatch.setenv(REQUEST_ENV, request.model_dump_json(by_alias=True))
    monkeypatch.setenv(WORKSPACE_ENV, str(workspace.root))
    reader = workspace.run(request)
    assert reader is not None
    steps = log_of(workspace, request)
    assert all(entry[DIFFERENCE] < 1e-3 for entry in steps), [entry[DIFFERENCE] for entry in steps]
    assert reader.manifest.counters["groups"] == 16
    assert not any("grpo-" in str(model["id"]) for model in server.client.models())


def test_a_server_that_never_gets_the_weights_ends_the_training(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    write = checkpoints.write_adapter
    first = [True]

    def stale(model: Any, folder: Path, precision: Any) -> None:
        """From the second exchange on the adapters are those of a model that nobody trains."""
        write(model if first.pop() else servable.adapted(9), folder, precision)
        first.append(False)

    monkeypatch.setattr(checkpoints, "write_adapter", stale)
    request = rollouts(workspace, secret(server, tmp_path), name="stale", max_steps=12)
    with pytest.raises(LogprobsDisagree, match="nats a token or more in each of the last 3 steps"):
        grpo.run(workspace.context(request))
    assert not any("grpo-" in str(model["id"]) for model in server.client.models())


def test_another_temperature_needs_the_log_probabilities_that_are_drawn_by(server: Server) -> None:
    served = UsersServer(server.client.address).base()
    with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
        check_logprobs(served)


def stage_process(request: StageRequest, root: Path) -> None:
    """Runs a stage in this (child) process; never returns."""
    os.environ[REQUEST_ENV] = request.model_dump_json(by_alias=True)
    os.environ[WORKSPACE_ENV] = str(root)
    evaluate._BATCH = SMALL
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the environment that the tests have is that of the CPU build
    os._exit(main())


def test_a_killed_server_and_a_killed_stage_cost_the_part_they_were_at(
    server: Server, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test here: it kills the server. First that one, in the middle: the stage may be tried again. The next
    attempt has a vLLM of its own, goes on, and is killed: its vLLM ends with it. A third one finishes."""
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    engine = secret(server, tmp_path)
    trained = [rollouts(workspace, engine, name="killed", max_steps=12, save_steps=1, attempt=n) for n in (1, 2)]
    folder = workspace.root / paths.artifact("grpo", trained[0].input_hash)
    assert in_child(workspace, trained[0], 2, signal.SIGKILL) == -signal.SIGKILL
    left = [model["id"] for model in server.client.models() if "grpo-" in str(model["id"])]
    assert left, "what a killed attempt has on a server that goes on"
    going_on = fork_runner.context(["tests.integration.test_vllm"]).Process(
        target=stage_process, args=(trained[1], workspace.root)
    )
    going_on.start()
    wait_for(lambda: any(folder.rglob("checkpoint-[3-9]")) or not going_on.is_alive())
    assert going_on.is_alive(), f"exit code {going_on.exitcode}"
    assert not {model["id"] for model in server.client.models()} & set(left), "the next attempt takes it away"
    first = preferences(workspace, secret(server, tmp_path))

    def kill() -> None:
        wait_for(lambda: parts(workspace, first))
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert execute(first, workspace.root) == ExitCode.TEMPORARY
    killer.join()
    wait_for(lambda: (server.folder / VLLM_ENDED).is_file())
    going_on.join(120)
    assert going_on.exitcode == ExitCode.TEMPORARY
    last = rollouts(workspace, {"transformers": {}}, name="killed", max_steps=12, save_steps=1, attempt=3)
    assert workspace.run(last) is not None
    sampled = [DIFFERENCE in entry for entry in log_of(workspace, last)]
    assert len(sampled) == 12
    assert sampled == sorted(sampled, reverse=True), "first the server's steps, then the process's own"
    assert 3 <= sum(sampled) < 12
    kept = parts(workspace, first)
    before = {path: path.read_bytes() for path in kept}
    assert 0 < len(kept) < 9

    second = preferences(workspace, {"vllm": {"args": list(ARGUMENTS)}}, attempt=2)
    started = fork_runner.context(["tests.integration.test_vllm"])
    child = started.Process(target=stage_process, args=(second, workspace.root))
    child.start()
    wait_for(lambda: len(parts(workspace, second)) > len(kept) or not child.is_alive(), 900)
    assert child.is_alive(), f"exit code {child.exitcode}"
    assert child.pid is not None
    descendants = psutil.Process(child.pid).children(recursive=True)
    theirs = [process for process in descendants if "vllm" in " ".join(process.cmdline()).lower()]
    assert theirs
    child.kill()
    child.join()
    assert not psutil.wait_procs(theirs, timeout=60)[1], "vLLM outlives its stage"
    assert all(path.read_bytes() == content for path, content in before.items())

    third = preferences(workspace, {"transformers": {}}, attempt=3)
    reader = workspace.run(third)
    assert reader is not None
    counters = reader.manifest.counters
    assert counters["samples_drawn"] == 32 * counters["prompts"]
    assert len({row.prompt_id for row in reader.rows(Preference)}) == counters["prompts"]


def test_nobody_there_is_told_as_such(workspace: PolicyWorkspace, items: list[Item]) -> None:
    base = servable.base(workspace)
    engine = ServedEngine(UsersServer(Address("http://127.0.0.1:9", "")))
    with pytest.raises(Exception, match="does not answer") as raised:
        engine.sampler(base).answers(Encoder(base.processor(), workspace.images), turns(items), max_new_tokens=4)
    assert getattr(raised.value, "exit_code", 0) == ExitCode.TEMPORARY
    assert not TokenClient(Address("http://127.0.0.1:9")).healthy()
