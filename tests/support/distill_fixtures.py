"""A small workspace for the tests of students: phantoms of which some are the probe's, a random tiny model, and all
that stages distill and generate read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medgr2_api.reward_model import Grades, RewardHead
from medgr2_api.stage_contract import REQUEST_ENV, WORKSPACE_ENV, ArtifactRef, CycleRef, StageRequest
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.distill import sampler
from medgr2_jobs.distill.task_split import in_probe
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.prompts import answers
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.runner.main import main
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, Decision
from medgr2_jobs.store.rows.prepared import Image, ImageOrigin, Item, PhantomRow
from medgr2_jobs.training import stage_callback
from tests.support import fork_runner, jobs_fixtures
from tests.support.rows import row_of

FORMAT = AnswerFormat.OPTION_TEXT
TRAINER = {"max_steps": 6, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "save_steps": 2}
#: Pictures of the probe, others that may be trained on, and held-out ones.
PROBE, TRAINED, HELD_OUT = 4, 20, 3
PRIVATE = "private"


@dataclass
class StudentWorkspace:
    """A workspace with prepared inputs."""

    root: Path
    refs: dict[str, ArtifactRef]
    images: list[Image]
    candidates: list[Candidate]

    def distill(
        self,
        *,
        attempt: int = 1,
        name: str = "",
        iteration: int = 1,
        inputs: dict[str, ArtifactRef] | None = None,
        **changes: Any,
    ) -> StageRequest:
        """A request for stage distill; `name` tells runs with the same parameters apart."""
        roles = {role: self.refs[role] for role in ("prepare", "generate-1", "curate-1", "policy", "reward")}
        asked = jobs_fixtures.request(
            "distill",
            iteration,
            {
                "seed": 7,
                "answerFormat": FORMAT,
                "training": {"lora": {"rank": 0}, "learningRate": 1e-3, "numEpochs": 1, "trainer": TRAINER},
                "maxAttempts": 3,
                "promotion": {},
                "sampling": {},
                **changes,
            },
            {**roles, **(inputs or {})},
            attempt=attempt,
        )
        return _named(asked, name)

    def generate(
        self, student: ArtifactRef | None, share: float = 0.5, *, attempt: int = 1, name: str = "", **changes: Any
    ) -> StageRequest:
        """A request for stage generate of iteration 2."""
        script = {"errorRate": 0.2, "blindSpots": 0.34, "irrelevantRate": 0.1, "incoherentRate": 0.1}
        inputs = {"prepare": self.refs["prepare"]}
        asked = jobs_fixtures.request(
            "generate",
            2,
            {
                "seed": 9,
                "iteration": 2,
                "provider": {"kind": "scripted", "scripted": script},
                "paradigms": [{"name": "Direct"}],
                "questionTypes": ["finding"],
                "candidates": 60,
                "questionsPerImage": 3,
                "sampling": {},
                "student": {"share": share, "maxAttempts": 2},
                "answerFormat": FORMAT,
                "shards": 1,
                **changes,
            },
            inputs | ({"student": student} if student else {}),
            attempt=attempt,
        )
        return _named(asked, name)

    def publish(
        self, role: str, stage: str, iteration: int, write: Callable[[ArtifactWriter], Any], **fields: Any
    ) -> None:
        """An artifact under this role."""
        asked = StageRequest(
            cycle=jobs_fixtures.CYCLE, iteration=iteration, stage=stage, parameters={}, input_hash=_hash(role)
        )
        writer = ArtifactWriter(self.root, asked)
        writer.open()
        write(writer)
        made = manifest.Manifest(
            stage=stage, input_hash=asked.input_hash, code_version=1, cycle="test", iteration=iteration, attempt=1,
            parts=writer.parts(), inputs={}, parameters={}, **fields,
        )  # fmt: skip
        digest = manifest.commit(writer.base, made, writer.work).output_digest
        path = str(writer.base.relative_to(self.root))
        self.refs[role] = ArtifactRef(stage=stage, iteration=iteration, path=path, output_digest=digest)

    def reader(self, asked: StageRequest) -> ArtifactReader:
        """What a stage published."""
        return jobs_fixtures.reader(self.root, asked)

    def ref(self, asked: StageRequest) -> ArtifactRef:
        """The same as an input."""
        found = self.reader(asked)
        return found.ref.model_copy(update={"output_digest": found.digest})


def build(root: Path) -> StudentWorkspace:
    """Makes the workspace: three questions per picture; of a third of the pictures they are the seed's, of the others
    the first generator's, which curation keeps."""
    torch.set_num_threads(1)
    made = StudentWorkspace(root, {}, [], [])
    items, phantoms = _draw(made)
    processor = tiny_tokenizer.processor()

    def prepare(writer: ArtifactWriter) -> None:
        tiny_model.build(processor.tokenizer, 1).save_pretrained(writer.path("models/policy"))
        processor.save_pretrained(writer.path("models/policy"))
        writer.table(Image, made.images)
        writer.table(ImageOrigin, [ImageOrigin(row.image_sha256, row.source) for row in made.images])
        writer.table(Item, items)
        writer.table(PhantomRow, phantoms)

    def policy(writer: ArtifactWriter) -> None:
        tiny_model.build(processor.tokenizer, 2).save_pretrained(writer.path("model"))
        processor.save_pretrained(writer.path("model"))

    def reward(writer: ArtifactWriter) -> None:
        torch.manual_seed(3)
        base = ArtifactReader(root, made.refs["prepare"]).folder_of("models/policy")
        model = RewardModel.fresh(base, RewardHead.LAST_TOKEN_AND_LIKELIHOOD, Grades(), base="", train=False)
        model.save(writer.path("model"), processor)

    decisions = [row_of(Decision, triplet_id=row.triplet_id, keep=True) for row in made.candidates]
    made.publish("prepare", "prepare", 0, prepare)
    made.publish("generate-1", "generate", 1, lambda writer: writer.table(Candidate, made.candidates))
    made.publish("curate-1", "curate", 1, lambda writer: writer.table(Decision, decisions), counters={"threshold": 0.0})
    made.publish("policy", "grpo", 1, policy)
    made.publish("reward", "reward", 0, reward)
    return made


def _draw(made: StudentWorkspace) -> tuple[list[Item], list[PhantomRow]]:
    store = ImageStore(made.root)
    items: list[Item] = []
    phantoms: list[PhantomRow] = []
    left = {"probe": PROBE, "trained": TRAINED, "heldout": HELD_OUT}
    index = 0
    while any(left.values()):
        index += 1
        shown = synthetic_images.attributes(1, index)
        sha256 = store.add(synthetic_images.draw(shown, 1, index), 10_000).sha256
        use = "probe" if in_probe(sha256) else "trained" if left["trained"] else "heldout"
        if not left[use]:
            continue
        left[use] -= 1
        split = Split.VALIDATION if use == "heldout" else Split.TRAIN
        seed = use == "trained" and left["trained"] % 3 == 0
        source = PRIVATE if use == "trained" and left["trained"] == 1 else "open"
        made.images.append(
            row_of(
                Image,
                image_sha256=sha256,
                modality=shown.modality,
                source=source,
                split=split,
                allow_external=source != PRIVATE,
            )
        )
        phantoms.append(PhantomRow(sha256, shown.modality, shown.finding, shown.location, shown.count))
        for number, asked in enumerate(synthetic_images.questions(1, index, 3)):
            question = {
                "image_sha256": sha256, "modality": shown.modality, "question_type": asked.kind,
                "question": asked.text, "options": asked.options, "answer_index": asked.answer_index,
                "rationale": asked.rationale,
            }  # fmt: skip
            name = f"{index:03d}-{number}"
            if use == "heldout" or seed:
                items.append(row_of(Item, item_id=f"seed-{name}", source="open", split=split, **question))
                continue
            said = answers.response(asked.rationale, asked.answer_index, asked.options, FORMAT)
            made.candidates.append(
                row_of(Candidate, triplet_id=name, iteration=1, response=said, generator="teacher", **question)
            )
    return items, phantoms


def _hash(name: str) -> str:
    return random.Random(name).randbytes(32).hex()


def _named(asked: StageRequest, name: str) -> StageRequest:
    if not name:
        return asked
    digest = _hash(f"{asked.input_hash}/{name}")
    return asked.model_copy(update={"input_hash": digest, "cycle": CycleRef(name="world", uid=digest[:8])})


def disturbed(request: StageRequest, root: Path, moment: str, number: int, sign: int) -> None:
    """Runs a stage in this (child) process and sends itself a signal; never returns.

    Args:
        request: the stage.
        root: the workspace.
        moment: `step` of the training, `part` that is asked, or empty: not at all.
        number: at which of them.
        sign: the signal.
    """
    torch.set_num_threads(1)
    sampler.PART_TASKS = 4
    seen = 0
    step, part = stage_callback.StageCallback.on_log, sampler._asked

    def strike() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), sign)

    def on_log(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if moment == "step":
            strike()
        return step(self, args, state, control, **more)

    def asked(*args: Any) -> Any:
        if moment == "part":
            strike()
        return part(*args)

    stage_callback.StageCallback.on_log = on_log  # type: ignore[method-assign]
    sampler._asked = asked
    os.environ[REQUEST_ENV] = request.model_dump_json(by_alias=True)
    os.environ[WORKSPACE_ENV] = str(root)
    os._exit(main())


def in_child(
    workspace: StudentWorkspace, request: StageRequest, moment: str = "", number: int = 0, sign: int = 0
) -> int:
    """Exit code of `disturbed` in a process of its own; -n when signal n ended it."""
    server = fork_runner.context(["tests.support.distill_fixtures", "medgr2_jobs.stages.distill"])
    child = server.Process(target=disturbed, args=(request, workspace.root, moment, number, sign))
    child.start()
    child.join(600)
    assert child.exitcode is not None, "the stage hangs"
    return child.exitcode
