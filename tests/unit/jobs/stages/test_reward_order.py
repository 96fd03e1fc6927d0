"""The order in which training sees its rows."""

from __future__ import annotations

from collections import Counter

from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.reward.train import TrainingExample, order

NEW = [TrainingExample(PromptResponse(None, f"new {number}"), 10.0) for number in range(10)]
OLD = [TrainingExample(PromptResponse(None, f"old {number}"), -6.0) for number in range(30)]


def test_every_pass_sees_each_row_once():
    found = order(NEW, (), 0.0, 25, seed=1)
    assert Counter(found[:10]) == Counter(found[10:20]) == Counter(NEW)
    assert found[:10] != found[10:20]
    assert found == order(NEW, (), 0.0, 25, seed=1) != order(NEW, (), 0.0, 25, seed=2)


def test_every_batch_holds_its_share_of_replay():
    found = order(NEW, OLD, 0.5, 40, seed=1)
    assert [sum(row in OLD for row in found[at : at + 8]) for at in range(0, 40, 8)] == [4] * 5
    assert Counter(row for row in found if row in NEW) == Counter(NEW * 2)
    quarter = order(NEW, OLD, 0.25, 40, seed=1)
    assert [sum(row in OLD for row in quarter[at : at + 8]) for at in range(0, 40, 8)] == [2] * 5
