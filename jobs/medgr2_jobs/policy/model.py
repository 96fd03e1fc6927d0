"""What a training of the policy starts from, how it is resumed, and what is published of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from medgr2_api.training_spec import ModelLoading

from ..errors import ConfigError
from ..models import checkpoint as checkpoints
from ..models import generation, held, vlm
from ..models.checkpoint import Base, Checkpoint
from ..runner.distributed import deepspeed
from ..runner.distributed.rendezvous import Rendezvous

#: TRL's name for the frozen copy of the adapters that a GRPO goes on training: its reference policy.
_REFERENCE = ".ref."


@dataclass(frozen=True)
class Start:
    """What a training starts from, and with it what can be published of it.

    Adapters on the model that prepare publishes go on: the same adapters are trained further, and published on the same
    base. Where adapters are asked for on anything else (a model that was fine-tuned as a whole, adapters of another
    rank or scale), they are trained on the merged weights, and since nobody has published those, what comes of it is
    published whole.
    """

    checkpoint: Checkpoint
    lora: LoraConfig | None
    """The adapters to train; None: all weights."""
    loading: ModelLoading = field(default_factory=ModelLoading)
    """How the model is held meanwhile."""

    @cached_property
    def continues(self) -> bool:
        """Whether the adapters of the checkpoint are trained further."""
        if self.lora is None or self.checkpoint.adapter is None:
            return False
        there: Any = LoraConfig.from_pretrained(str(self.checkpoint.adapter))
        asked: Any = self.lora
        return all(getattr(there, name) == getattr(asked, name) for name in ("r", "lora_alpha", "target_modules"))

    @property
    def stands_on(self) -> Base | None:
        """What the adapters are published with; None: the model is published whole."""
        on_base = self.continues or (self.lora is not None and self.checkpoint.adapter is None)
        return self.checkpoint.stands_on if on_base else None

    @property
    def wrap(self) -> LoraConfig | None:
        """Adapters that the trainer has to put on the model; None: none, or they are on it."""
        return None if self.continues else self.lora

    def model(self) -> Any:
        """The model to train.

        Where only adapters learn in bfloat16, the base is, too, as it is where it answers: autocast would cast float32
        weights anew for every forward pass. DeepSpeed has its own precision, and weights that learn, or are merged and
        published whole, need float32.

        Raises:
            ConfigError: it cannot be held as asked for.
        """
        alone = Rendezvous.from_environment().deepspeed is None
        frozen = self.stands_on is not None and held.bfloat16(self.loading) and alone
        dtype = torch.bfloat16 if frozen else torch.float32
        folder, adapter = self.checkpoint.base, self.checkpoint.adapter
        how: dict[str, Any] = {"train": True, "dtype": dtype, "attention": held.attention(self.loading.attention)}
        if self.loading.quantization is not None:
            how["quantization"] = self._quantization(dtype)
        if not self.continues:
            model = vlm.load_model(folder, adapter=adapter, **how)
            if self.lora is None and self.loading.freeze_vision_tower:
                held.freeze_vision_tower(model)
            return model
        assert self.lora is not None
        assert adapter is not None
        return vlm.with_adapter(vlm.load_model(folder, **how), adapter, dropout=self.lora.lora_dropout)

    def _quantization(self, dtype: torch.dtype) -> Any:
        if self.stands_on is None:
            raise ConfigError(
                f"{held.FIELD}.quantization: only the weights under adapters that stand on the base model are "
                "quantized, and here "
                + ("all weights learn" if self.lora is None else "others were merged into it before")
                + ": give policy.sft and policy.grpo the same lora, of a rank above 0"
            )
        return held.quantization(self.checkpoint.base, dtype)


class ExactResume(Trainer):
    """Goes before a TRL trainer among the bases: a resume loads the checkpoint's weights, or fails; adapters learn in
    float32.

    TRL makes bfloat16 of adapters on a quantized base, which rounds most of a small learning rate's updates away.

    transformers 5 writes weights under the names of the hub (`model.layers…`) and builds models with others
    (`model.language_model.layers…`). `from_pretrained` translates; `Trainer` does not, and its `load_state_dict` is not
    strict: without adapters a resumed run would silently start from the first weights, with the optimizer of the last.
    """

    def __init__(self, model: Any, **named: Any) -> None:
        if not getattr(model, "is_loaded_in_4bit", False):
            super().__init__(model=model, **named)
            return
        before = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
        super().__init__(model=model, **named)
        assert self.model is not None
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                weight.data = before.get(name, weight.data.float())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, local_files_only=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)


def trained(trainer: Trainer, start: Start) -> Any:
    """The model that was trained, with whole weights. All processes of a training must call this.

    Args:
        trainer: after training.
        start: what it started from.

    Returns:
        The model, unwrapped; where the processes share the weights out (Zero3), only the main one gets it.
    """
    if not is_deepspeed_zero3_enabled():
        return trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if not trainer.is_world_process_zero():
        return None
    with deepspeed.whole(trainer.args):
        model = start.model()
        model = get_peft_model(model, start.wrap) if start.wrap else model
    model.load_state_dict({name: value for name, value in weights.items() if _REFERENCE not in name}, strict=True)
    return model


def save(model: Any, start: Start, folder: Path) -> None:
    """Writes what is published: adapters and which model they stand on, or a whole model in Hugging Face format.

    Weights stay in the precision they were trained in, for bfloat16 would round most of a small learning rate's updates
    away. The processor and the generation settings are those it was started from: trainers change both.

    Args:
        model: the trained model, unwrapped; a PeftModel that is merged is used up.
        start: what it was started from.
        folder: where to write.
    """
    if start.stands_on is not None:
        checkpoints.save_adapter(model, folder, start.stands_on)
        return
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    processor = start.checkpoint.processor()
    model.generation_config = generation.configuration(processor.tokenizer, model.generation_config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
