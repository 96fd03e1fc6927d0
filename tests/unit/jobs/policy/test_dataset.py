from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from medgr2_api.policy import PromptSource
from medgr2_jobs.curate.training_set import Origin, TrainingRow
from medgr2_jobs.errors import DataError
from medgr2_jobs.models import vlm
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.policy.dataset import CompletionCollator, grpo_dataset, grpo_prompts, sft_dataset, sft_rows
from medgr2_jobs.store.rows.candidates import Triplet, student_name, triplet_of


@pytest.fixture(scope="module")
def processor(workspace: PolicyWorkspace) -> Any:
    return vlm.load_processor(workspace.context(workspace.sft()).input("prepare").folder_of("models/policy"))


@pytest.fixture(scope="module")
def collator(workspace: PolicyWorkspace, processor: Any) -> CompletionCollator:
    return CompletionCollator(Encoder(processor, workspace.images))


def test_collator_feeds_the_tensors_of_trls_own(
    workspace: PolicyWorkspace, processor: Any, collator: CompletionCollator
) -> None:
    rows = sft_rows(workspace.training, FORMAT)[:9]
    ours = collator(list(sft_dataset(rows)))
    conversations = [
        {
            "images": [workspace.images.load(row.image_sha256 or "")],
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for _, row in rows
    ]
    theirs = DataCollatorForVisionLanguageModeling(processor=processor, completion_only_loss=True)(conversations)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert value.dtype == ours[key].dtype, key
        assert torch.equal(value, ours[key]), key


def test_only_the_answer_and_the_end_of_its_turn_are_supervised(
    workspace: PolicyWorkspace, processor: Any, collator: CompletionCollator
) -> None:
    rows = sft_rows(workspace.training, FORMAT)[:4]
    labels = collator(list(sft_dataset(rows)))["labels"]
    for (_, row), line in zip(rows, labels, strict=True):
        assert processor.tokenizer.decode(line[line != -100]) == row.response + "<|im_end|>\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PromptResponse("a", "Where?", ""), "row-7: its response is empty"),
        (PromptResponse("a", "Where?", "  \n"), "row-7: its response is empty"),
        (PromptResponse("a", "Where?", "here <|image_pad|>"), "row-7: its text contains the model's own image token"),
        (PromptResponse("a", "Where <|image_pad|>?", "here"), "row-7: its text contains the model's own image token"),
    ],
)
def test_check_names_the_row_that_would_train_on_nothing(
    collator: CompletionCollator, row: PromptResponse, said: str
) -> None:
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        collator.check([("row-6", PromptResponse("a", "Where?", "here")), ("row-7", row)])


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(DataError, match="training set is empty"):
        sft_rows([], FORMAT)


NUMBERS = itertools.count()


def learnt(origin: Origin = Origin.GENERATED, **changes: Any) -> TrainingRow:
    row = TrainingRow(f"t{next(NUMBERS)}", origin, 1, "i1", "CT", "finding", "What?", ("a", "b"), 0, "")
    return replace(row, **changes)


def triplet(**changes: Any) -> Triplet:
    return replace(Triplet(f"t{next(NUMBERS)}", 1, "i1", "CT", "finding", "What?", ("a", "b"), 0, "", ""), **changes)


def test_identical_prompts_are_merged_and_only_trusted_answers_kept() -> None:
    training = [
        learnt(Origin.SEED),
        learnt(image_sha256="i2"),  # kept in this iteration
        learnt(image_sha256="i3"),  # kept twice, with different answers
        learnt(image_sha256="i3", answer_index=1),
        learnt(image_sha256="i9"),  # kept in an earlier iteration, not asked now
    ]
    triplets = [
        triplet(answer_index=1),  # asks the seed's question, answers it wrongly
        triplet(image_sha256="i2"),
        triplet(image_sha256="i3"),
        triplet(image_sha256="i4", answer_index=1),  # rejected: its answer must not be used
        triplet(image_sha256="i2", options=("b", "a")),  # other options: another prompt
    ]
    prompts = grpo_prompts(training, triplets, FORMAT, PromptSource.CANDIDATES)
    assert [(p.prompt.image_sha256, p.options, p.answer_index) for p in prompts] == [
        ("i1", ("a", "b"), 0),
        ("i2", ("a", "b"), 0),
        ("i3", ("a", "b"), None),
        ("i4", ("a", "b"), None),
        ("i2", ("b", "a"), None),
    ]
    assert len({p.prompt.prompt_id for p in prompts}) == len(prompts)


def test_a_kept_candidate_is_asked_as_the_training_set_has_it() -> None:
    """curate has dealt its options anew; asked in the old order it would have no trusted answer."""
    generated = triplet(image_sha256="i2", options=("b", "a"), answer_index=1)
    kept = learnt(image_sha256="i2", row_id=generated.triplet_id, options=("a", "b"), answer_index=0)
    rejected = triplet(image_sha256="i3")
    prompts = grpo_prompts([learnt(Origin.SEED), kept], [generated, rejected], FORMAT, PromptSource.CANDIDATES)
    assert [(p.prompt.image_sha256, p.options, p.answer_index) for p in prompts] == [
        ("i1", ("a", "b"), 0),
        ("i2", ("a", "b"), 0),
        ("i3", ("a", "b"), None),
    ]


def test_a_students_kept_answer_is_asked_and_not_trusted_unless_its_teacher_says_the_same() -> None:
    by_student = student_name(1, "d" * 64)
    training = [learnt(image_sha256=image, generator=by_student) for image in ("i2", "i3")]
    training.append(learnt(image_sha256="i3", generator="teacher"))
    prompts = grpo_prompts([learnt(Origin.SEED), *training], [], FORMAT, PromptSource.KEPT)
    assert [(p.prompt.image_sha256, p.answer_index) for p in prompts] == [("i1", 0), ("i2", None), ("i3", 0)]


def test_source_kept_asks_the_training_set_only() -> None:
    training = [learnt(Origin.SEED), learnt(image_sha256="i2")]
    prompts = grpo_prompts(training, [triplet(image_sha256="i4")], FORMAT, PromptSource.KEPT)
    assert [p.prompt.image_sha256 for p in prompts] == ["i1", "i2"]
    assert all(p.answer_index == 0 for p in prompts)


def test_rows_for_grpo_carry_their_own_picture(workspace: PolicyWorkspace) -> None:
    triplets = [found for row in workspace.candidates if (found := triplet_of(row))]
    prompts = grpo_prompts(workspace.training, triplets, FORMAT, PromptSource.CANDIDATES)
    dataset = grpo_dataset(prompts, workspace.images)
    assert len(dataset) == len(prompts) == 48
    for index in (0, 17, 47):
        row = dataset[index]
        assert row["image"] == workspace.images.load(prompts[index].prompt.image_sha256)
        assert row["prompt"] == [{"role": "user", "content": row["text"]}]
        assert row["text"] == prompts[index].prompt.text
        assert row["prompt_id"] == prompts[index].prompt.prompt_id
        assert row["answer_index"] == prompts[index].answer_index
