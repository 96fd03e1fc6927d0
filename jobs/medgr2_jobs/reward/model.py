"""The reward model R: a vision-language backbone with a scalar head (paper, "Reward model"; docs/decisions.md, 16).

Composition, not a class per family: any backbone that `vlm.load_model` loads. A published R is one folder: the backbone
in Hugging Face format with adapters merged, `head.safetensors`, and `reward.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from medgr2_api.reward_model import Grades, RewardHead

from ..errors import ConfigError
from ..models import vlm
from ..store import atomic

#: R's range (paper, four-grade supervision): scores are clipped to it at inference.
SCORE_MIN, SCORE_MAX = -6.0, 10.0
#: Weight of the language-model loss beside the MSE of normalised scores (docs/decisions.md, 16).
LM_WEIGHT = 1.0

HEAD_FILE, INFO_FILE = "head.safetensors", "reward.json"
_VERSION = 1
_MLP_WIDTH = 32
_LEAST_LOGPROB = -10.0  # one impossible token must not drown the mean
_MIN_LOGPROB_SCALE = 4.0  # brings the minimum to the magnitude of the mean


@dataclass(frozen=True)
class RewardInfo:
    """What a reward model is, beside its weights: the content of `reward.json`."""

    head: RewardHead
    hidden_size: int
    grades: dict[str, float]
    """Targets it was trained on, by grade."""
    base: str
    """Digest of the artifact whose backbone it started from."""
    version: int = _VERSION

    @property
    def centre(self) -> float:
        """Middle of the grades: what an untrained head answers."""
        return (max(self.grades.values()) + min(self.grades.values())) / 2

    @property
    def scale(self) -> float:
        """Half the grades' range: the head and the MSE work in units of it (docs/decisions.md, 16: targets / 8)."""
        return (max(self.grades.values()) - min(self.grades.values())) / 2 or 1.0

    @property
    def good(self) -> float:
        """Least target of a text that is right: the language-model loss learns from these only."""
        return min(self.grades["original"], self.grades["perturbed"])


class LastTokenHead(nn.Module):
    """Linear on the last attended token; starts at zero, so that an untrained R says the middle grade."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.output = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, pooled: torch.Tensor, _logprobs: torch.Tensor | None) -> torch.Tensor:
        """(B, H) → (B,), in units of the grades' half range."""
        read: torch.Tensor = self.output(pooled)
        return read.squeeze(-1)


class LikelihoodHead(nn.Module):
    """Small MLP on the last token and on how likely the backbone finds the response, given image and prompt.

    Without the likelihood an R trained on little data stays blind to the image (docs/decisions.md, 16).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size + 2, _MLP_WIDTH)
        self.output = nn.Linear(_MLP_WIDTH, 1)

    def forward(self, pooled: torch.Tensor, logprobs: torch.Tensor | None) -> torch.Tensor:
        """(B, H) and the mean and minimum log-probability (B, 2) → (B,)."""
        assert logprobs is not None
        features = torch.cat([self.norm(pooled), logprobs], 1)
        read: torch.Tensor = self.output(nn.functional.gelu(self.inner(features)))
        return read.squeeze(-1)


_HEADS: dict[RewardHead, type[nn.Module]] = {
    RewardHead.LAST_TOKEN: LastTokenHead,
    RewardHead.LAST_TOKEN_AND_LIKELIHOOD: LikelihoodHead,
}


class RewardModel(nn.Module):
    """R(image, prompt, response) → score."""

    #: Our loss is a mean over the batch; transformers.Trainer divides it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, backbone: Any, info: RewardInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.info = info
        self.head = _HEADS[info.head](info.hidden_size).to(self.core.device, torch.float32)

    @classmethod
    def fresh(cls, folder: Path, head: RewardHead, grades: Grades, *, base: str, train: bool = True) -> Self:
        """An untrained R on the backbone in `folder`; seed torch before.

        Raises:
            ConfigError: the folder holds no model of a supported family.
        """
        backbone = vlm.load_model(folder, train=train)
        hidden = backbone.config.get_text_config().hidden_size
        return cls(backbone, RewardInfo(head, hidden, grades.dump(), base)).train(train)

    @classmethod
    def load(cls, folder: Path, *, train: bool = False) -> Self:
        """A published R.

        Raises:
            ConfigError: a file is missing or does not fit the others; the message names it.
        """
        info = _read_info(folder / INFO_FILE)
        weights = _read_head(folder / HEAD_FILE)
        backbone = vlm.load_model(folder, train=train)
        hidden = backbone.config.get_text_config().hidden_size
        if hidden != info.hidden_size:
            raise ConfigError(f"{folder / INFO_FILE}: says hidden size {info.hidden_size}, the backbone has {hidden}")
        model = cls(backbone, info)
        expected = {name: tuple(value.shape) for name, value in model.head.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        if shapes != expected:
            raise ConfigError(f"{folder / HEAD_FILE}: head {info.head} needs {expected}, the file has {shapes}")
        model.head.load_state_dict(weights)
        return model.train(train)

    @property
    def core(self) -> Any:
        """The backbone without peft's wrapper (its layers carry the adapters)."""
        return self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone

    @property
    def uses_likelihood(self) -> bool:
        """Whether the head needs the response's log-probabilities."""
        return self.info.head is RewardHead.LAST_TOKEN_AND_LIKELIHOOD

    def add_adapters(self, config: LoraConfig | None) -> None:
        """Freezes the backbone and puts adapters on it; None trains all of it."""
        if config is not None:
            self.backbone = get_peft_model(self.backbone, config)

    def merge_adapters(self) -> None:
        """Folds the adapters into the backbone, so that everything downstream loads one way."""
        if isinstance(self.backbone, PeftModel):
            self.backbone = self.backbone.merge_and_unload()
            self.backbone.requires_grad_(True)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """What transformers.Trainer calls to save memory."""
        self.backbone.enable_input_require_grads()
        self.core.activation_checkpointing_enable(**options)

    def forward(
        self, labels: torch.Tensor, targets: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scores a right-padded batch; with targets, also its loss.

        L_RM = E[(R(x) − r)²] (paper, reward model) in units of the grades' half range, plus the language-model loss
        on the rows whose grade is good when the head reads likelihoods (docs/decisions.md, 16).

        Args:
            labels: int64 (B, T): ids of the response tokens, -100 elsewhere.
            targets: float (B,): grades.
            inputs: what the backbone takes (`vlm.Batch.inputs`).

        Returns:
            scores: float32 (B,), not clipped; loss: scalar, when targets are given.
        """
        hidden = self.core.model(**inputs, use_cache=False).last_hidden_state
        scores, logprobs, mask = self.read(hidden, inputs["attention_mask"], labels)
        if targets is None:
            return {"scores": scores}
        loss = nn.functional.mse_loss(scores / self.info.scale, targets.float() / self.info.scale)
        if logprobs is not None and mask is not None:
            good = targets >= self.info.good
            loss = loss - LM_WEIGHT * logprobs[good].sum() / mask[good].sum().clamp(min=1)
        return {"loss": loss, "scores": scores}

    def read(
        self, hidden: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """From hidden states to scores.

        Args:
            hidden: (B, T, H) last hidden states, right-padded; T may begin anywhere before the last prompt token.
            attention: (B, T), 1 where there is a token.
            labels: int64 (B, T).

        Returns:
            scores float32 (B,); and, when the head reads likelihoods, log-probabilities and mask (B, T-1).
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        pooled = hidden[rows, attention.sum(1) - 1]
        logprobs = mask = features = None
        if self.uses_likelihood:
            logprobs, mask = vlm.token_logprobs(self.core, hidden, labels)
            bounded = logprobs.clamp(min=_LEAST_LOGPROB)
            mean = bounded.sum(1) / mask.sum(1).clamp(min=1)
            features = torch.stack([mean, bounded.min(1).values / _MIN_LOGPROB_SCALE], 1)
        # in float32, whatever the backbone's precision is; DeepSpeed has made the head's own weights bfloat16
        weights = {name: value.float() for name, value in self.head.named_parameters()}
        with torch.autocast(hidden.device.type, enabled=False):
            units = functional_call(self.head, weights, (pooled.float(), features))
        return units * self.info.scale + self.info.centre, logprobs, mask

    def save(self, folder: Path, processor: Any) -> None:
        """Writes the folder that `load` reads; adapters must be merged before."""
        assert not isinstance(self.backbone, PeftModel)
        self.backbone.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / HEAD_FILE)
        atomic.write_text(folder / INFO_FILE, json.dumps(asdict(self.info), indent=1, sort_keys=True) + "\n")


def _read_info(path: Path) -> RewardInfo:
    try:
        document = json.loads(path.read_text())
        if document.pop("version") != _VERSION:
            raise ConfigError(f"{path}: not version {_VERSION}, which this version of MedGR2 reads")
        return RewardInfo(**{**document, "head": RewardHead(document["head"])})
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: missing, so this is no reward model that MedGR2 made; "
            "a plain vision-language model goes into rewardModel.baseModel"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: does not describe a reward model ({error})") from error


def _read_head(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; a reward model without its head cannot score") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file ({error})") from error
