"""The policy stages end to end on a random tiny model: what they publish, and that no interruption changes it."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medgr2_api.stage_contract import ExitCode, Shard, StageRequest
from medgr2_jobs.errors import Checkpointed, ConfigError
from medgr2_jobs.models import vlm
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.prompts import answers
from medgr2_jobs.stages import grpo, preferences
from medgr2_jobs.store.rows.training import Preference, Rollout
from tests.support import policy_fixtures
from tests.support.plugin_fixtures import install, plugin
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace, in_child


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


SFT = {"max_steps": 11, "per_device_train_batch_size": 4}  # 7 steps an epoch
GRPO = {"max_steps": 10, "per_device_train_batch_size": 32}  # 6 steps an epoch


def requests(workspace: PolicyWorkspace, kind: str, name: str, attempt: int) -> StageRequest:
    if kind == "sft":
        return workspace.sft(SFT, name=name, attempt=attempt)
    if kind == "sft-lora":
        return workspace.sft(SFT, rank=4, name=name, attempt=attempt)
    if kind == "grpo":
        return workspace.grpo(GRPO, name=name, attempt=attempt)
    if kind == "grpo-released":
        return workspace.grpo(GRPO, name=name, attempt=attempt, whenPolicyBeatsReward="Skip", release="Best")
    if kind == "grpo-lora":
        return workspace.grpo(GRPO, name=name, attempt=attempt, lora={"rank": 4, "alpha": 8}, klCoefficient=0.04)
    two = {**GRPO, "num_iterations": 2, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    return workspace.grpo(two, name=name, attempt=attempt)


@pytest.mark.parametrize("kind", ["sft", "sft-lora", "grpo", "grpo-released", "grpo-lora", "grpo-two-passes"])
def test_kills_and_sigterm_do_not_change_a_byte(workspace: PolicyWorkspace, kind: str) -> None:
    """`kill -9` at a random step, then in the middle of writing a checkpoint, then SIGTERM, then to the end."""
    straight = requests(workspace, kind, "straight", 1)
    assert in_child(workspace, straight) == ExitCode.OK

    seed = random.randrange(2**32)
    rng = random.Random(seed)
    last = (SFT if kind.startswith("sft") else GRPO)["max_steps"]
    steps = sorted(rng.sample(range(2, last - 2), 3))
    print(f"seed {seed}: interrupted at {steps}")
    assert in_child(workspace, requests(workspace, kind, "torn", 1), steps[0], signal.SIGKILL) == -signal.SIGKILL
    assert (
        in_child(workspace, requests(workspace, kind, "torn", 2), steps[1], signal.SIGKILL, "save") == -signal.SIGKILL
    )
    assert in_child(workspace, requests(workspace, kind, "torn", 3), steps[2], signal.SIGTERM) == ExitCode.CHECKPOINTED
    resumed = requests(workspace, kind, "torn", 4)
    assert in_child(workspace, resumed) == ExitCode.OK

    one, other = workspace.reader(straight), workspace.reader(resumed)
    assert one.digest == other.digest
    assert one.manifest.counters == other.manifest.counters
    assert not (workspace.root / other.ref.path / "work" / resumed.cycle.uid).exists()


def test_sft_lowers_the_loss_and_publishes_a_model_that_loads(workspace: PolicyWorkspace) -> None:
    found = workspace.run(workspace.sft({"max_steps": 30, "per_device_train_batch_size": 14}))
    assert found is not None
    counters = found.manifest.counters
    assert (counters["rows"], counters["steps"]) == (len(workspace.training), 30)
    assert counters["train_loss"] < 0.5 * counters["first_loss"]
    folder = found.folder_of("model")
    assert vlm.load_processor(folder).tokenizer.padding_side == "right"
    assert not list(folder.glob("adapter*"))
    vlm.load_model(folder)


def test_sft_goes_on_from_the_previous_policy_on_request(workspace: PolicyWorkspace) -> None:
    request = workspace.sft({"max_steps": 1, "per_device_train_batch_size": 4}, name="previous")
    request.parameters["initFrom"] = "Previous"
    first = workspace.run(request)
    request = request.model_copy(
        update={"input_hash": "b" * 64, "inputs": {**request.inputs, "policy": workspace.refs["policy"]}}
    )
    second = workspace.run(request)
    assert first is not None
    assert second is not None
    assert first.digest != second.digest


def test_an_unusable_row_ends_sft_with_a_data_error(
    workspace: PolicyWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = next(row.triplet_id for row in workspace.decisions if row.keep)
    candidates = [replace(row, response="") if row.triplet_id == kept else row for row in workspace.candidates]
    broken = replace(workspace, refs={**workspace.refs})
    broken.refs["generate-1"] = policy_fixtures.publish_rows(broken, "generate", candidates)
    assert broken.run(broken.sft(name="broken"), expect=ExitCode.DATA_ERROR) is None
    assert kept in capsys.readouterr().err


def test_each_completion_is_scored_against_its_own_image(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts and more, two generations and more: the rows R sees, and the pixels beside their log-probabilities.

    (Public code repeats pixels in one order and their grid in another: half the rows get another row's image.)
    """
    asked: list[PromptResponse] = []
    pixels: list[Any] = []
    original = grpo.GRPOPolicyTrainer._get_per_token_logps_and_entropies

    def scorer(ctx: Any) -> Any:
        def score(rows: list[PromptResponse]) -> np.ndarray:
            asked.extend(rows)
            return np.arange(len(rows), dtype=float) % 7

        return score

    def spy(self: Any, model: Any, input_ids: Any, *args: Any, **more: Any) -> Any:
        pixels.append((input_ids, more["pixel_values"], more["image_grid_thw"]))
        return original(self, model, input_ids, *args, **more)

    monkeypatch.setattr(grpo, "_scorer", scorer)
    monkeypatch.setattr(grpo.GRPOPolicyTrainer, "_get_per_token_logps_and_entropies", spy)
    found = workspace.run(
        workspace.grpo({"max_steps": 2, "per_device_train_batch_size": 12}, numGenerations=3, name="order")
    )
    assert found is not None

    truth = {}
    for row in [*workspace.training, *workspace.candidates[:-1]]:
        prompt = answers.prompt_of(row, FORMAT)
        truth.setdefault(prompt.text, set()).add(prompt.image_sha256)
    assert len(asked) == 24
    groups = [asked[start : start + 3] for start in range(0, 24, 3)]
    for group in groups:
        assert len({(row.image_sha256, row.prompt) for row in group}) == 1
        assert group[0].image_sha256 in truth[group[0].prompt]
    assert len({group[0].image_sha256 for group in groups[:4]}) > 1

    processor = vlm.load_processor(workspace.context(workspace.sft()).input("prepare").folder_of("models/policy"))
    encoder = vlm.Encoder(processor, workspace.images)
    for step, (ids, values, grids) in enumerate(pixels):
        expected = {}
        for row in asked[step * 12 : step * 12 + 12]:
            expected.setdefault(tuple(encoder.prompt_ids(PromptResponse(row.image_sha256, row.prompt))), set()).add(
                row.image_sha256
            )
        start = 0
        for line, grid in zip(ids, grids, strict=True):
            own = values[start : start + int(grid.prod())]
            start += int(grid.prod())
            prompt = next(p for p in expected if list(p) == _prompt_of(line.tolist(), p, processor))
            assert any(torch.equal(own, encoder.pixels(sha256)[0]) for sha256 in expected[prompt])


def _prompt_of(line: list[int], prompt: tuple[int, ...], processor: Any) -> list[int]:
    """The ids of `line` that stand where `prompt` would, left padding taken off."""
    begin = next(at for at, token in enumerate(line) if token != processor.tokenizer.pad_token_id)
    return line[begin : begin + len(prompt)]


def test_grpo_prepares_each_picture_once(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    request = workspace.grpo({"max_steps": 2, "per_device_train_batch_size": 16}, name="pictures")
    processor = vlm.load_processor(workspace.context(request).input("sft").folder_of("model"))
    kind, done = type(processor.image_processor), []
    prepare = kind._preprocess

    def counted(self: Any, images: list[Any], **options: Any) -> Any:
        done.append((self, len(images)))
        return prepare(self, images, **options)

    monkeypatch.setattr(kind, "_preprocess", counted)
    found = workspace.run(request)
    assert found is not None
    prompts = len(found.rows(Rollout))
    assert prompts
    each = {id(one): sum(count for other, count in done if other is one) for one, _ in done}
    assert all(count <= prompts for count in each.values()), "the policy's processor, and the reward model's"


def test_grpo_prepares_a_prompt_once_for_all_its_completions(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = workspace.grpo({"max_steps": 2, "per_device_train_batch_size": 16}, numGenerations=4, name="prompts")
    kind = type(vlm.load_processor(workspace.context(request).input("sft").folder_of("model")))
    prepare, done = kind.create_mm_token_type_ids, []

    def counted(self: Any, input_ids: list[list[int]]) -> Any:
        done.append(len(input_ids))
        return prepare(self, input_ids)

    monkeypatch.setattr(kind, "create_mm_token_type_ids", counted)
    assert workspace.run(request) is not None
    assert done == [16 // 4] * 4, "in each step once to sample, and once for the loss"


def test_grpo_raises_its_reward(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """R rewards short answers: after some steps they are shorter."""
    monkeypatch.setattr(
        grpo, "_scorer", lambda ctx: lambda rows: np.array([10.0 - min(16, len(row.response)) for row in rows])
    )
    found = workspace.run(
        workspace.grpo({"max_steps": 12, "per_device_train_batch_size": 64}, numGenerations=8, name="learns")
    )
    assert found is not None
    counters = found.manifest.counters
    assert counters["reward_last"] > counters["reward_first"] + 0.05
    assert counters["variance_share_reward_model"] == pytest.approx(1)
    table = found.rows(Rollout)
    assert len(table) == 12 * 8
    assert {row.step for row in table} == set(range(12))
    assert vlm.load_processor(found.folder_of("model")).tokenizer.padding_side == "right"


def test_a_step_takes_as_many_prompts_as_it_is_told(workspace: PolicyWorkspace) -> None:
    """48 prompts, 12 a step: four steps of 48 completions, six of them in each forward pass."""
    trainer = {"max_steps": -1, "per_device_train_batch_size": 6}
    found = workspace.run(workspace.grpo(trainer, promptsPerStep=12, name="steps"))
    assert found is not None
    assert found.manifest.counters["steps"] == 4
    assert found.manifest.counters["groups"] == 48
    assert 0 <= found.manifest.counters["groups_without_variance"] < 48


def test_prompts_that_cannot_be_shared_out_are_refused(workspace: PolicyWorkspace) -> None:
    with pytest.raises(ConfigError, match=r"policy.grpo.promptsPerStep \(3\).*divisor of 12"):
        grpo.run(workspace.context(workspace.grpo({"per_device_train_batch_size": 8}, promptsPerStep=3)))


def test_grpo_without_a_reward_model_asks_trusted_prompts_only(workspace: PolicyWorkspace) -> None:
    found = workspace.run(
        workspace.grpo(
            {"max_steps": 1},
            roles=(*policy_fixtures.DATA, "sft"),
            rewards=[{"type": "AnswerMatch", "weight": 1.0}],
        )
    )
    assert found is not None
    assert found.manifest.counters["prompts"] == found.manifest.counters["prompts_trusted"] == len(workspace.training)


def test_grpo_reads_whole_answers_behind_a_think_of_the_template(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, begins, asked = vlm.load_processor, "<|im_start|>assistant\n", list[PromptResponse]()

    def opening(path: Path, padding_side: str = "right") -> Any:
        processor = honest(path, padding_side)
        before, after = processor.chat_template.rsplit(begins, 1)
        processor.chat_template = f"{before}{begins}<think>\n{after}"
        return processor

    def scorer(ctx: Any) -> Any:
        return lambda rows: (asked.extend(rows), np.arange(len(rows), dtype=float))[1]

    monkeypatch.setattr(vlm, "load_processor", opening)
    monkeypatch.setattr(grpo, "_scorer", scorer)
    found = workspace.run(workspace.grpo({"max_steps": 2}, name="opened"))
    assert found is not None
    texts = [row.completion for row in found.rows(Rollout)]
    assert texts
    assert all(text.startswith("<think>") for text in texts)
    assert asked
    assert all(row.response.startswith("<think>") for row in asked)


def test_grpo_raises_the_term_of_a_plugin(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rewards short answers, needs neither R nor a trusted answer, and its figures are in the counters."""
    install(monkeypatch)
    brevity = {"type": "Plugin", "weight": 1.0, "plugin": plugin("brevity", characters=40)}
    found = workspace.run(
        workspace.grpo(
            {"max_steps": 12, "per_device_train_batch_size": 64},
            roles=(*policy_fixtures.DATA, "sft"),
            numGenerations=8,
            rewards=[brevity],
        )
    )
    assert found is not None
    counters = found.manifest.counters
    assert counters["reward_last"] > counters["reward_first"] + 0.05
    assert counters["plugin_brevity"] == pytest.approx(counters["reward_last"], abs=1e-6)
    assert counters["variance_share_plugin_brevity"] == pytest.approx(1)
    assert counters["prompts"] > counters["prompts_trusted"]


def test_no_special_token_is_sampled(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def scorer(ctx: Any) -> Any:
        return lambda rows: np.zeros(len(rows))

    original = grpo.PolicyReward.reward

    def spy(self: Any, completion_ids: list[list[int]], **more: Any) -> list[float]:
        seen.extend(completion_ids)
        return original(self, **more)

    monkeypatch.setattr(grpo, "_scorer", scorer)
    monkeypatch.setattr(grpo.PolicyReward, "reward", spy)
    trainer = {"max_steps": 2, "per_device_train_batch_size": 64, "temperature": 4.0, "max_completion_length": 16}
    assert workspace.run(workspace.grpo(trainer, name="special")) is not None
    processor = vlm.load_processor(workspace.context(workspace.sft()).input("prepare").folder_of("models/policy"))
    special = {index for index, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    sampled = {token for ids in seen for token in ids}
    assert sampled & special <= {processor.tokenizer.eos_token_id}
    assert processor.tokenizer.eos_token_id in sampled  # the end of an answer is not suppressed


def test_preferences_are_the_same_after_a_stop(workspace: PolicyWorkspace) -> None:
    request = workspace.preferences()
    straight = workspace.run(request)
    assert straight is not None
    counters = straight.manifest.counters
    assert counters["samples_drawn"] == 4 * counters["prompts"]
    rows = straight.rows(Preference)
    assert len({(row.prompt_id, row.response) for row in rows}) == len(rows) == counters["samples"]
    assert {row.split for row in rows} == {"train", "heldout"}
    assert {row.target for row in rows} <= {10, 6, 0, -6}

    again = request.model_copy(update={"input_hash": "a" * 64})
    context = workspace.context(again)
    context.stop.set()
    with pytest.raises(Checkpointed):
        preferences.run(context)
    context.stop.clear()
    context.progress = lambda phase, step, *_: context.stop.set() if step == 1 else None  # type: ignore[method-assign]
    with pytest.raises(Checkpointed) as stopped:
        preferences.run(context)
    assert stopped.value.step == 1
    assert len(list(context.work.glob("samples-*.json"))) == 1
    resumed = workspace.run(again)
    assert resumed is not None
    assert resumed.digest == straight.digest


def test_preferences_in_shards_are_those_of_one_process(workspace: PolicyWorkspace) -> None:
    request = workspace.preferences()
    straight = workspace.run(request)
    assert straight is not None
    divided = request.model_copy(update={"input_hash": "b" * 64})
    for index in (1, 0):
        workspace.run(divided.model_copy(update={"shard": Shard(index=index, count=2)}))
    together = workspace.reader(divided)
    assert len(together.shards) == 2
    assert together.rows(Preference) == straight.rows(Preference)
    first, second = (shard.counters for _, shard in together.shards)
    assert first["samples"] > 0
    assert second["samples"] > 0
    assert first["samples_drawn"] + second["samples_drawn"] == straight.manifest.counters["samples_drawn"]
