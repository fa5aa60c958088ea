"""Hugging Face's `Trainer` with checkpoints from which a run goes on as if it had not been stopped."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from fastkto.disk import writing
from fastkto.training.faults.checkpoints import check_fits, check_scaler, checkpoint_folder, written_to_its_end
from fastkto.training.output.adapters import load_adapter, save_adapter
from fastkto.training.output.card.ollama import PLAIN, modelfile
from fastkto.training.output.card.serving import Use, uses
from fastkto.training.output.card.text import card, write_card
from fastkto.training.output.changed import load_but_changed
from fastkto.training.output.folder import owned
from fastkto.training.output.record import RunRecord
from fastkto.trunk.modules import is_peft_model, unwrap_peft

logger = logging.get_logger(__name__)

TAGS = ("fastkto", "kto")


class Kept(Protocol):
    """What has a file of its own in a checkpoint."""

    def save(self, checkpoint: str) -> None:
        """Write it."""

    def load(self, checkpoint: str) -> None:
        """Be again what it was then."""


class ResumableTrainer(Trainer):
    """A checkpoint is whole or none, holds an adapter as it is, and what else is `kept`."""

    kept: list[Kept]
    record: RunRecord
    data_lines: list[str]
    """What the data held, in words; empty for a stream."""
    rerun: str | None = None
    """The command that does this run again, where one does."""

    def found(self, resume_from_checkpoint: "str | bool | None") -> str | None:
        """The checkpoint to resume from, which fits this model; the Trainer loads the rest of it."""
        checkpoint = checkpoint_folder(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None:
            if not self._has_own_format:
                check_fits(checkpoint, self.model)
            check_scaler(checkpoint, self.accelerator)
            for kept in (self.record, *self.kept):
                kept.load(checkpoint)
        return checkpoint

    @contextmanager
    def owning_output(self, checkpoint: str | None) -> Iterator[None]:
        """The output directory, this run's alone inside the block."""
        folder, main_process = self.args.output_dir or ".", bool(self.args.should_save)
        fresh = checkpoint is None or Path(checkpoint).resolve().parent != Path(folder).resolve()
        with owned(folder, self.accelerator, main_process=main_process, fresh=fresh):
            if main_process:
                with writing("output_dir", folder, "what the run is made of"):
                    self.record.save(folder)
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's; with a card. A checkpoint gets its other files, before the one that makes it whole."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._write_card(Path(output_dir or self.args.output_dir or "."))
        if _internal_call and output_dir is not None and self.args.should_save:
            for kept in (self.record, *self.kept):
                kept.save(output_dir)
            if self._keeps_adapter:
                save_adapter(self.model, output_dir)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """`README.md` in the output directory, in the place of the Trainer's."""
        self._write_card(Path(self.args.output_dir or "."))

    def _write_card(self, folder: Path) -> None:
        if not self.args.should_save:
            return
        model = unwrap_peft(self.model)
        base = model.config._name_or_path or None
        tags = dict.fromkeys([*TAGS, *(getattr(model, "model_tags", None) or ())])
        about = self.record.about
        text = card(
            *(folder.resolve().name, base, about, self.record.not_defaults(), self.data_lines),
            *(self.state.log_history, [*tags], self.rerun, self._uses(folder, base)),
        )
        with writing("output_dir", folder, "the model card"):
            write_card(folder, text)

    def _uses(self, folder: Path, base: str | None) -> list[Use]:
        tokenizer: Any = self.processing_class
        file, plain = folder / "chat_template.jinja", bool(self.record.about.get("plain"))
        return uses(
            str(folder),
            base=base,
            adapters=self.record.about["adapter"],
            template=bool(tokenizer.chat_template) and not plain,
            template_file=str(file) if file.is_file() and not plain else None,
            modelfile=PLAIN if plain else modelfile(tokenizer),
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with written_to_its_end(folder, main_process=self.args.should_save):
            super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """The Trainer's; then the file that makes a checkpoint whole waits for every rank's part of it."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._keeps_adapter:
            load_adapter(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._keeps_adapter:
            load_adapter(self.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's; settings of the optimizer and the schedule that were changed hold from here on."""
        load = functools.partial(super()._load_optimizer_and_scheduler, checkpoint)
        if checkpoint is None or not self.record.changed or self.is_deepspeed_enabled:  # which holds both itself
            load()
            return
        steps = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
        load_but_changed(self.optimizer, self.lr_scheduler, load, self.record.changed, steps)

    @property
    def _has_own_format(self) -> bool:
        return self.accelerator.distributed_type in ("FSDP", "DEEPSPEED")

    @property
    def _keeps_adapter(self) -> bool:
        assert self.model is not None
        return is_peft_model(self.model) and not self._has_own_format
