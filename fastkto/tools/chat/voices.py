"""The models that answer: loaded as they were saved, each with the conversation that it has had."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TextStreamer

from fastkto.config import KTOConfig
from fastkto.errors import InputError, require
from fastkto.rows.templates.encoding import encode_row, tokenize_row
from fastkto.tools.chat.finding import Found
from fastkto.training.loading import load_policy, model_source

Write = Callable[[str], None]
WORD = "fastkto"


class Voice:
    """A model under a name, and what was said so far."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, *, system: str | None, plain: bool, adapter_off: bool = False
    ) -> None:
        self.name, self.model, self.tokenizer, self.adapter_off = name, model, tokenizer, adapter_off
        self.templated = bool(tokenizer.chat_template) and not plain
        if system is not None and not self.templated:
            why = "its prompts go past the chat template" if plain else "this model has no chat template"
            raise InputError("system", system, f"none: {why}", "Leave it out, or put it into the prompt.")
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._said: list[dict[str, str]] = [*self._start]

    def answer(self, prompt: str, write: Write, *, max_new_tokens: int, temperature: float) -> None:
        """Answer through `write` as the text comes; remembered once it is whole."""
        row = self._row([*self._said, {"role": "user", "content": prompt}] if self.templated else prompt)
        ids, _ = encode_row(row, self.tokenizer, None, "the prompt")
        room = self._room(len(ids), max_new_tokens)
        end, text = self._end(row)
        streamer = Streamed(self.tokenizer, write, text)
        given = torch.tensor([ids], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with self.model.disable_adapter() if self.adapter_off else contextlib.nullcontext():
            self.model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=room,
                eos_token_id=end,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else end[0],
                streamer=streamer,
                **sampling,
                **({"stop_strings": [text], "tokenizer": self.tokenizer} if text else {}),
            )
        if self.templated:
            self._said = [*row["prompt"], {"role": "assistant", "content": streamer.whole}]

    def _row(self, prompt: Any) -> dict[str, Any]:
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": WORD}] if self.templated else WORD}

    def _room(self, length: int, wanted: int) -> int:
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if window is None or length < window:
            return wanted if window is None else min(wanted, window - length)
        fix = "Start over with /reset, or write less."
        raise InputError("prompt", f"{length} tokens", f"fewer than the model's window of {window}", fix)

    def _end(self, row: dict[str, Any]) -> tuple[list[int], str | None]:
        """The tokens that end an answer, and the text that does where training taught no token for it."""
        _, completion = tokenize_row(row, self.tokenizer)
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= {*self.tokenizer.all_special_ids}
        taught = next((i for i in reversed(completion) if i in special), None)
        own = getattr(self.model.generation_config, "eos_token_id", None)
        known = [own] if isinstance(own, int) else list(own or [])
        ends = dict.fromkeys([*([] if taught is None else [taught]), *known, self.tokenizer.eos_token_id])
        text = None
        if taught is None:
            text = self.tokenizer.decode(completion).partition(WORD)[2].strip() or None
        return [i for i in ends if i is not None], text


class Streamed(TextStreamer):
    """The text of an answer as it comes, without the text that ends it."""

    def __init__(self, tokenizer: Any, write: Write, ending: str | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.ending, self.whole, self._held = write, ending, "", ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on what cannot be the beginning of the end."""
        self._held += text
        kept = 0
        if self.ending is not None:
            before, found, _ = self._held.partition(self.ending)
            self._held, stream_end = before, stream_end or bool(found)
            kept = 0 if stream_end else len(self.ending) - 1
        ready = self._held[: len(self._held) - kept]
        self._held = self._held[len(ready) :]
        if ready:
            self.whole += ready
            self.write(ready)


def load_voices(
    found: Found,
    *,
    base: str | None,
    beside: str | None,
    alone: bool,
    system: str | None,
    plain: bool,
    trust_remote_code: bool,
) -> tuple[list[Voice], str | None]:
    """The trained model, and what answers beside it unless it is `alone`; and why nothing does, where it should.

    `base`: where an adapter's base is now; `beside`: the model asked for by name.
    """
    given: dict[str, Any] = {"system": system, "plain": plain}
    folder = str(found.folder)
    if not found.adapter:
        trained = _load(folder, trust_remote_code)
        voices = [Voice("trained", trained, _tokenizer([folder, str(found.folder.parent)], trust_remote_code), **given)]
    else:
        if (name := base or found.base) is None:
            raise InputError("OUT", folder, "an adapter that names its base model", "Name it with --model.")
        try:
            start = _load(model_source(name, "model"), trust_remote_code)
        except (InputError, OSError) as error:
            says = " ".join(str(error).split())
            fix = f"Name the adapter's base with --model: {says}"
            raise InputError("model", name, "a model that can be loaded", fix) from error
        places = [folder, str(found.folder.parent), name]
        tokenizer = _tokenizer(places, trust_remote_code)
        adapted = _with_adapter(start, folder)
        voices = [Voice("trained", adapted, tokenizer, **given)]
        if not alone and beside in (None, name):
            return [*voices, Voice("base", adapted, tokenizer, **given, adapter_off=True)], None
    if alone or (name := beside or found.base) is None:
        missing = "Nothing says what it was trained from, so it answers alone: --with BASE lets its base answer too."
        return voices, None if alone else missing
    try:
        other = _load(model_source(name, "with"), trust_remote_code)
    except (InputError, OSError) as error:
        if beside is not None:
            raise
        says = " ".join(str(error).split())
        return voices, f"Its base {name} cannot be loaded, so it answers alone; --with names another. ({says})"
    own = _tokenizer([name], trust_remote_code)
    shared = voices[0].tokenizer if own.get_vocab() == voices[0].tokenizer.get_vocab() else own
    return [*voices, Voice("base", other, shared, **given)], None


def _load(name: str, trust_remote_code: bool) -> Any:
    """A whole model in the dtype that it was saved in, on the accelerator where there is one."""
    args = KTOConfig(bf16=False, model_init_kwargs={"dtype": "auto"}, trust_remote_code=trust_remote_code)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return load_policy(name, args, None).to(device).eval()


def _with_adapter(model: Any, folder: str) -> Any:
    peft = require("peft", "peft")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return peft.PeftModel.from_pretrained(model, folder).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError, UserWarning) as error:
        says = " ".join(str(error).split())[:300]
        fix = f"Name the base that it was trained on with --model. peft says: {says}"
        raise InputError("OUT", folder, "an adapter that fits its base model", fix) from error


def _tokenizer(places: list[str], trust_remote_code: bool) -> Any:
    """The tokenizer of the first place that has one."""
    held = [place for place in places if (Path(place) / "tokenizer_config.json").is_file()]
    name = held[0] if held else places[-1]
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        says = " ".join(str(error).split())
        raise InputError("OUT", name, "a tokenizer that can be loaded", f"transformers says: {says}") from error
