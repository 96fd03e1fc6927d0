"""Model folders of the policy: resuming a training from one, and publishing one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..models import generation, vlm
from ..runner.distributed import deepspeed


class ExactResume(Trainer):
    """Goes before a TRL trainer among the bases: a resume loads the checkpoint's weights, or fails.

    transformers 5 writes weights under the names of the hub (`model.layers…`) and builds models with others
    (`model.language_model.layers…`). `from_pretrained` translates; `Trainer` does not, and its `load_state_dict` is not
    strict: without adapters a resumed run would silently start from the first weights, with the optimizer of the last.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, local_files_only=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)


def trained(trainer: Trainer, source: Path, lora: LoraConfig | None) -> Any:
    """The model that was trained, with whole weights. All processes of a training must call this.

    Args:
        trainer: after training.
        source: the folder that its model was loaded from.
        lora: the adapters that were trained.

    Returns:
        The model, unwrapped; where the processes share the weights out (Zero3), only the main one gets it.
    """
    if not is_deepspeed_zero3_enabled():
        return trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if not trainer.is_world_process_zero():
        return None
    with deepspeed.whole(trainer.args):
        model = vlm.load_model(source, train=True)
        model = get_peft_model(model, lora) if lora else model
    model.load_state_dict(weights, strict=True)
    return model


def save(model: Any, source: Path, folder: Path) -> None:
    """Writes a folder in Hugging Face format that every later stage loads in the same way.

    Adapters are merged; weights stay in the precision they were trained in, for bfloat16 would round most of a small
    learning rate's updates away. The processor comes from `source`, and the generation settings are ours: trainers
    change both.

    Args:
        model: the trained model, unwrapped; a merged PeftModel is used up.
        source: the folder it was started from.
        folder: where to write.
    """
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    processor = vlm.load_processor(source)
    model.generation_config = generation.configuration(processor.tokenizer, model.generation_config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
