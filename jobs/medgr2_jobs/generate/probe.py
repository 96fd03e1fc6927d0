"""A few questions without a stage, paid for like any other: what `medgr2 doctor` and `--dry-run` learn from."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from medgr2_api.stage_contract import CycleRef, Shard
from medgr2_api.stages.generate import GenerateParameters

from ..errors import DataError
from ..store.rows.candidates import Candidate
from . import sampling_plan
from .egress_policy import allowed_images
from .prepared_images import PreparedImages
from .provider_session import BillingAccount, open_session
from .request_scheduler import RequestScheduler

#: The ledger of samples, beside those of artifacts: a stage counts it as spent, and the other way round.
LEDGER_NAME = "sample"


def sample(
    root: Path,
    cycle: CycleRef,
    parameters: GenerateParameters,
    images: PreparedImages | None,
    count: int,
    budget_usd: float | None = None,
) -> list[Candidate]:
    """Asks a few questions, one an image, and returns their rows; nothing is published.

    Args:
        root: the workspace; its image store has the images.
        cycle: who pays: the ledger lies in the cycle's folder, under its uid.
        parameters: of the stage generate that is to be tried.
        images: to ask about, those of the training split that may be sent; None: a drawn picture, which is nobody's.
        count: questions.
        budget_usd: `budget.generatorUSD`; None: no limit.

    Returns:
        What came of them.

    Raises:
        BudgetSpent: the budget is too small for them.
        ConfigError: settings, secret, key or model are wrong, or no image may be sent to the provider.
        DataError: there is no training image.
        TemporaryError: the server cannot be reached, or most questions got no answer.
    """
    training_images = sampling_plan.training_images(images.rows) if images is not None else {}
    if images is not None and not training_images:
        raise DataError("the training split has no image to ask about; see the quarantine table of stage prepare")
    account = BillingAccount(cycle, LEDGER_NAME, budget_usd)

    async def ask() -> list[Candidate]:
        async with open_session(root, account, parameters, images or PreparedImages()) as session:
            tasks = sampling_plan.tasks(
                allowed_images(session.egress, training_images) if images is not None else {session.egress.draw(): ""},
                LEDGER_NAME,
                iteration=parameters.iteration,
                candidates=count,
                per_image=1,
                question_types=parameters.question_types,
                shard=Shard(),
            )
            return await RequestScheduler(session, tasks, threading.Event(), lambda done, figures: None).run()

    return asyncio.run(ask())
