"""A small workspace for the tests of the policy stages: phantoms, a random tiny model, and what the stages read."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from medgr2_api import paths, stages
from medgr2_api.reward_model import Grades, RewardHead
from medgr2_api.stage_contract import REQUEST_ENV, WORKSPACE_ENV, ArtifactRef, CycleRef, StageRequest
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.training_set import TrainingRow, training_set
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.models import vlm
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.prompts import answers
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.runner.main import execute, main
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows import Split, TableRow
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision
from medgr2_jobs.store.rows.prepared import Image, Item
from medgr2_jobs.store.rows.training import RewardAnswer
from medgr2_jobs.training import stage_callback
from tests.support import fork_runner
from tests.support.rows import row_of

R = TypeVar("R", bound=TableRow)

FORMAT = AnswerFormat.OPTION_TEXT
#: Roles of what D_gen is read from.
DATA = ("prepare", "generate-1", "curate-1")
CYCLE = CycleRef(name="world", uid="0" * 8)
SFT_TRAINER = {"max_steps": 4, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
GRPO_TRAINER = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "temperature": 1.0,
    "lr_scheduler_type": "constant",
}


@dataclass
class PolicyWorkspace:
    """A workspace with prepared inputs."""

    root: Path
    refs: dict[str, ArtifactRef]
    training: list[TrainingRow]
    """D_gen."""
    candidates: list[Candidate]
    decisions: list[Decision]

    @property
    def images(self) -> ImageStore:
        return ImageStore(self.root)

    def request(
        self, stage: str, parameters: dict[str, Any], roles: list[str], *, attempt: int = 1, name: str = ""
    ) -> StageRequest:
        """A request for `stage`; `name` tells runs with the same parameters apart."""
        digest = hashlib.sha256(f"{stage}/{parameters}/{sorted(roles)}/{name}".encode()).hexdigest()
        answers = "answer_format" in stages.definition(stage).parameters.model_fields
        answers_as = {"answerFormat": FORMAT} if answers else {}
        return StageRequest(
            cycle=CycleRef(name="world", uid=digest[:8]),  # its own, or one run's attempts would fence off another's
            iteration=1,
            stage=stage,
            attempt=attempt,
            input_hash=digest,
            parameters={"seed": 7, **answers_as, **parameters},
            inputs={role: self.refs[role] for role in roles},
        )

    def sft(self, trainer: dict[str, Any] | None = None, *, rank: int = 0, **more: Any) -> StageRequest:
        training = {
            "lora": {"rank": rank, "alpha": 2 * rank} if rank else {"rank": 0},
            "learningRate": 1e-3,
            "numEpochs": 1,
            "trainer": SFT_TRAINER if trainer is None else trainer,
        }
        return self.request("sft", {"initFrom": "Base", "training": training}, list(DATA), **more)

    def grpo(
        self,
        trainer: dict[str, Any] | None = None,
        *,
        roles: tuple[str, ...] = (*DATA, "sft", "reward"),
        attempt: int = 1,
        name: str = "",
        release: str = "Last",
        engine: dict[str, Any] | None = None,
        **changes: Any,
    ) -> StageRequest:
        """`engine` is no part of the request's hash, so that attempts go on from each other's checkpoints."""
        grpo = {
            "rewards": [
                {"type": "RewardModel", "weight": 0.8},
                {"type": "AnswerMatch", "weight": 0.2},
            ],
            "promptSource": "Candidates",
            "seedFraction": 0.0,
            "whenPolicyBeatsReward": "Train",
            "numGenerations": 4,
            "promptsPerStep": 0,
            "resampleGroups": 0,
            "klCoefficient": 0.0,
            "learningRate": 1e-3,
            "numEpochs": 1,
            "lora": {"rank": 0},
            "trainer": {**GRPO_TRAINER, **(trainer or {})},
            **changes,
        }
        asked = self.request("grpo", {"grpo": grpo, "release": release}, list(roles), attempt=attempt, name=name)
        return asked.model_copy(update={"parameters": {**asked.parameters, "engine": engine}}) if engine else asked

    def preferences(self, **changes: Any) -> StageRequest:
        sampling = {"samplesPerPrompt": 4, "temperature": 1.0, "topP": 1.0}
        preferences = {"prompts": 40, **sampling, "seedFraction": 0.5, **changes}
        return self.request("preferences", {"preferences": preferences, "grades": {}}, [*DATA, "policy"])

    def relabel(self, *, attempt: int = 1, name: str = "", **changes: Any) -> StageRequest:
        examination = {"samplesPerQuestion": 3, "temperature": 1.0, "minPosterior": 0.8, "maxQuestions": 10_000}
        parameters = {"crossExamination": {**examination, **changes}}
        roles = ["prepare", "candidates", "decisions", "reward", "policy"]
        return self.request("relabel", parameters, roles, attempt=attempt, name=name)

    def context(self, request: StageRequest) -> StageContext[Any]:
        """What the stage's `run` is given."""
        context = StageContext(
            request, stages.definition(request.stage).parameters.model_validate(request.parameters), self.root
        )
        context.writer.open()
        return context

    def run(self, request: StageRequest, expect: int = 0) -> ArtifactReader | None:
        """Runs a stage in this process; its artifact when it succeeded."""
        code = execute(request, self.root)
        assert code == expect, code
        if code:
            return None
        return self.reader(request)

    def reader(self, request: StageRequest) -> ArtifactReader:
        path = str(paths.artifact(request.stage, request.input_hash))
        return ArtifactReader(self.root, ArtifactRef(stage=request.stage, iteration=1, path=path, output_digest=""))


def _write_tiny(folder: Path, seed: int) -> None:
    """The built-in model, random."""
    processor = tiny_tokenizer.processor()
    tiny_model.build(processor.tokenizer, seed).save_pretrained(folder)
    processor.save_pretrained(folder)


def build(root: Path, images: int = 24, write_model: Callable[[Path, int], None] = _write_tiny) -> PolicyWorkspace:
    """Makes the workspace: two questions per phantom; a third of the images seed, the rest candidates, of which about
    half are kept; and some for validation."""
    torch.set_num_threads(1)
    store = ImageStore(root)
    items: list[Item] = []
    candidates: list[Candidate] = []
    for index in range(images + 8):
        shown = synthetic_images.attributes(1, index)
        sha256 = store.add(synthetic_images.draw(shown, 1, index), 10_000).sha256
        for number, asked in enumerate(synthetic_images.questions(1, index, 2)):
            name = f"{index:03d}-{number}"
            question = {
                "image_sha256": sha256,
                "modality": shown.modality,
                "question_type": asked.kind,
                "question": asked.text,
                "options": asked.options,
                "answer_index": asked.answer_index,
                "rationale": asked.rationale,
            }
            if index >= images or index % 3 == 0:
                split = Split.TRAIN if index < images else Split.VALIDATION
                items.append(row_of(Item, item_id=f"seed-{name}", source="p", split=split, **question))
            else:
                said = answers.response(asked.rationale, asked.answer_index, asked.options, FORMAT)
                candidates.append(row_of(Candidate, triplet_id=name, iteration=1, response=said, **question))
    candidates.append(row_of(Candidate, triplet_id="torn", iteration=1, outcome=CandidateOutcome.INVALID_JSON))
    rng = random.Random(0)
    decisions = []
    for row in candidates:
        usable = row.outcome is CandidateOutcome.OK
        keep = usable and rng.random() < 0.5
        reasons = () if keep else ("below_threshold",) if usable else ("outcome:invalid_json",)
        decisions.append(row_of(Decision, triplet_id=row.triplet_id, keep=keep, reasons=reasons))

    refs: dict[str, ArtifactRef] = {}

    def publish(role: str, stage: str, write: Callable[[ArtifactWriter], Any]) -> None:
        refs[role] = published(root, role, stage, write)

    def prepare(writer: ArtifactWriter) -> None:
        write_model(writer.path("models/policy"), 1)
        writer.table(Item, items)
        writer.table(Image, [row_of(Image, image_sha256=sha256) for sha256 in sorted({i.image_sha256 for i in items})])

    def policy(writer: ArtifactWriter) -> None:
        write_model(writer.path("model"), 2)

    def reward(writer: ArtifactWriter) -> None:
        torch.manual_seed(3)
        base = ArtifactReader(root, refs["prepare"]).folder_of("models/policy")
        model = RewardModel.fresh(base, RewardHead.LAST_TOKEN_AND_LIKELIHOOD, Grades(), base="", train=False)
        model.save(writer.path("model"), vlm.load_processor(base))
        writer.table(RewardAnswer, [
            RewardAnswer(item.item_id, item.image_sha256, item.answer_index,
                         tuple(float(at == item.answer_index) for at in range(len(item.options))))
            for item in items if item.split is Split.VALIDATION
        ])  # fmt: skip

    publish("prepare", "prepare", prepare)
    publish("curate-1", "curate", lambda writer: writer.table(Decision, decisions))
    publish("generate-1", "generate", lambda writer: writer.table(Candidate, candidates))
    publish("sft", "sft", policy)
    publish("policy", "grpo", policy)
    publish("reward", "reward", reward)
    refs |= {"candidates": refs["generate-1"], "decisions": refs["curate-1"]}
    workspace = PolicyWorkspace(root, refs, [], candidates, decisions)
    workspace.training = training_set(workspace.context(workspace.sft()), 1, FORMAT)
    return workspace


def publish_rows(workspace: PolicyWorkspace, stage: str, rows: list[R]) -> ArtifactRef:
    """Another artifact of a stage, with this table."""
    return published(workspace.root, f"more/{rows}", stage, lambda writer: writer.table(type(rows[0]), rows))


def published(root: Path, name: str, stage: str, write: Callable[[ArtifactWriter], Any]) -> ArtifactRef:
    input_hash = hashlib.sha256(name.encode()).hexdigest()
    request = StageRequest(cycle=CYCLE, iteration=1, stage=stage, parameters={}, input_hash=input_hash)
    writer = ArtifactWriter(root, request)
    writer.open()
    write(writer)
    path = paths.artifact(stage, input_hash)
    found = manifest.commit(
        root / path,
        manifest.Manifest(
            stage=stage, input_hash=input_hash, code_version=1, cycle=CYCLE.name, iteration=1, attempt=1,
            parts=writer.parts(), inputs={}, parameters={},
        ),
        writer.work,
    )  # fmt: skip
    return ArtifactRef(stage=stage, iteration=1, path=str(path), output_digest=found.output_digest)


def disturbed(request: StageRequest, root: Path, step: int, sign: int, moment: str) -> None:
    """Runs a stage in this (child) process and sends itself a signal; never returns.

    Args:
        request: the stage.
        root: the workspace.
        step: at which optimizer step; 0: not at all.
        sign: the signal.
        moment: `log` (at the end of the step) or `save` (in the middle of a checkpoint, at this step or the next one).
    """
    torch.set_num_threads(1)
    name = f"on_{moment}"
    original = getattr(stage_callback.StageCallback, name)

    def strike(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        nonlocal step
        if step and state.global_step >= step:
            step = 0
            os.kill(os.getpid(), sign)
        return original(self, args, state, control, **more)

    setattr(stage_callback.StageCallback, name, strike)
    os.environ[REQUEST_ENV] = request.model_dump_json(by_alias=True)
    os.environ[WORKSPACE_ENV] = str(root)
    os._exit(main())


def in_child(
    workspace: PolicyWorkspace, request: StageRequest, step: int = 0, sign: int = 0, moment: str = "log"
) -> int:
    """Exit code of `disturbed` in a process of its own; -n when signal n ended it."""
    server = fork_runner.context(["tests.support.policy_fixtures", "medgr2_jobs.stages.sft", "medgr2_jobs.stages.grpo"])
    child = server.Process(target=disturbed, args=(request, workspace.root, step, sign, moment))
    child.start()
    child.join(180)
    assert child.exitcode is not None, "the stage hangs"
    return child.exitcode
