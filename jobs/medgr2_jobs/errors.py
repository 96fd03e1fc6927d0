"""How a stage says that it cannot go on. Each error carries its exit code; all else is an application error (1)."""

from __future__ import annotations

from medgr2_api.stage_contract import BUDGET_SPENT, ExitCode


class StageError(Exception):
    """Base: ends the stage with `exit_code`; the message says what is wrong, where, and what to do."""

    exit_code: ExitCode = ExitCode.ERROR

    @property
    def reason(self) -> str:
        """One CamelCase word for conditions and events."""
        return type(self).__name__


class DataError(StageError):
    """The user's data is bad (exit 65): never retried."""

    exit_code = ExitCode.DATA_ERROR


class ConfigError(StageError):
    """The configuration is bad (exit 78): never retried."""

    exit_code = ExitCode.CONFIG


class TooFewUsable(ConfigError):
    """A generator's answers are paid for and hardly any can be used (exit 78): more of them would be the same."""


class NotFinite(ConfigError):
    """Numbers of a model became infinite or none at all (exit 78): the same settings would come to the same."""


class ImageTokensMismatch(ConfigError):
    """A model makes another number of features of a picture than its processor leaves tokens for (exit 78)."""


class ImageIgnored(ConfigError):
    """A blank picture in the place of the right one changes nothing of what a model says (exit 78)."""


class ConstantReward(ConfigError):
    """All completions of many steps got the same reward (exit 78): there is nothing to learn from."""


class KLOutOfBounds(ConfigError):
    """The policy has run away from where it started (exit 78)."""


class LogprobsDisagree(ConfigError):
    """Who samples and who trains find the same tokens unlike likely (exit 78): not the same model or weights."""


class CorruptArtifact(StageError):
    """An artifact does not match its manifest (exit 65): a retry would read the same bytes."""

    exit_code = ExitCode.DATA_ERROR


class TemporaryError(StageError):
    """It may pass: disk full, provider down (exit 75)."""

    exit_code = ExitCode.TEMPORARY


class DiskFull(TemporaryError):
    """No space or quota left (exit 75): the message names the path and what to do."""


class BudgetSpent(TemporaryError):
    """The next question might pass `budget.generatorUSD` (exit 75): it goes on when the budget is raised."""

    @property
    def reason(self) -> str:
        """The word by which the planner knows it."""
        return BUDGET_SPENT


class Stalled(TemporaryError):
    """A training makes no steps any more (exit 75): the log has what each of its threads was doing."""


class Fenced(StageError):
    """A newer attempt of this stage has started; this one publishes nothing (exit 75)."""

    exit_code = ExitCode.TEMPORARY


class Terminated(StageError):
    """Asked to stop, and there was no time for a checkpoint, or nothing to put into one (exit 143)."""

    exit_code = ExitCode.SIGTERM


class PeerLost(StageError):
    """Another process of the same training ended (exit 143): that one's end explains what happened."""

    exit_code = ExitCode.SIGTERM


class RendezvousTimeout(StageError):
    """The other nodes of a training did not come (exit 143)."""

    exit_code = ExitCode.SIGTERM


class Checkpointed(StageError):
    """Asked to stop, and the checkpoint is on the volume (exit 85)."""

    exit_code = ExitCode.CHECKPOINTED

    def __init__(self, step: int = -1) -> None:
        super().__init__(f"stopped on request; checkpoint of step {step} is on the volume")
        self.step = step
