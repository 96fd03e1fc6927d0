"""Stage sft: supervised fine-tuning of the policy on D_gen."""

from __future__ import annotations

import json

from medgr2_api.stages.sft import SFTParameters
from medgr2_api.training_spec import InitFrom

from ..curate.training_set import training_set
from ..models import checkpoint
from ..policy.dataset import sft_rows
from ..policy.fine_tuning import fine_tune
from ..policy.model import save
from ..runner.context import StageContext, StageOutcome


def run(ctx: StageContext[SFTParameters]) -> StageOutcome:
    """Trains from the base model (or the previous policy) and publishes `model/` and `log.json`.

    Raises:
        ConfigError: a trainer option is unknown, owned or refused; no usable model.
        DataError: D_gen is empty, or a row has nothing to learn from.
        Checkpointed: asked to stop.
    """
    parameters = ctx.parameters
    rows = sft_rows(training_set(ctx, ctx.request.iteration, parameters.answer_format), parameters.answer_format)
    previous = parameters.init_from is InitFrom.PREVIOUS and ctx.has_input("policy")  # iteration 1 has no previous one
    source = checkpoint.published(ctx, "policy") if previous else checkpoint.base(ctx)
    tuned = fine_tune(ctx, rows, source, parameters.training, settings="policy.sft", loading=parameters.loading)
    if not ctx.process_group.main:
        return StageOutcome()
    save(tuned.model, tuned.start, ctx.writer.path("model"))
    ctx.writer.path("log.json", digested=False).write_text(json.dumps(tuned.log, indent=1))
    return StageOutcome(
        counters={
            "rows": len(rows),
            "steps": tuned.steps,
            "first_loss": tuned.losses[0],
            "train_loss": tuned.losses[-1],
        }
    )
