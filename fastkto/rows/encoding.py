"""One row of text or messages -> token ids of the prompt alone and of [prompt | completion]."""

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError
from fastkto.rows.formats import json_cell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "fastkto:content"


def tokenize_row(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", *, chat_template: str | None = None, where: str = "row"
) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of the completion; the prompt ends where it and [prompt | completion] diverge."""
    alone, together = encode_row(row, tokenizer, chat_template, where)
    start = common_prefix(alone, together)
    return together[:start], together[start:]


def prompt_key(prompt_ids: Sequence[int]) -> int:
    """A 64-bit content key of a prompt: rows that share it are never paired with each other."""
    digest = hashlib.blake2b(struct.pack(f"<{len(prompt_ids)}q", *prompt_ids), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def read_chat_template(chat_template: str | None) -> str | None:
    """The text of a chat template given as a path or as the template itself."""
    if chat_template is None or "{" in chat_template:
        return chat_template
    if not Path(chat_template).is_file():
        raise InputError("chat_template", chat_template, "a Jinja file that exists, or a template", "Check the path.")
    return Path(chat_template).read_text(encoding="utf-8")


def encode_row(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", chat_template: str | None, where: str
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt alone and of [prompt | completion]."""
    truncated = bool(row.get("truncated"))
    if isinstance(row["prompt"], str):
        return _encode_text(row["prompt"], row["completion"], tokenizer, truncated, where)
    if not (chat_template or tokenizer.chat_template):
        raise InputError(
            "chat_template",
            None,
            f"one, because {where} holds messages",
            "Give one with --chat_template PATH, or write prompt and completion as plain text.",
        )
    arguments = json_cell(row.get("chat_template_kwargs"), f"{where}, column 'chat_template_kwargs'") or {}
    arguments = {"tools": json_cell(row.get("tools"), f"{where}, column 'tools'")} | _present(arguments)
    if chat_template:
        arguments["chat_template"] = chat_template
    prompt, completion = _present(row["prompt"]), _present(row["completion"])
    try:
        alone = _render(tokenizer, prompt, add_generation_prompt=True, **arguments)
        if truncated:
            text = _unfinished(prompt, completion, tokenizer, arguments, where)
            together = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            together = _render(tokenizer, prompt + completion, **arguments)
    except InputError:
        raise
    except _unrenderable() as error:
        fix = "Correct the messages or the template."
        raise InputError(
            where, f"{type(error).__name__}: {error}", "messages that the chat template takes", fix
        ) from error
    return alone, together


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **arguments: Any) -> list[int]:
    rendered: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments)
    return list(rendered["input_ids"])


def _encode_text(
    prompt: str, completion: str, tokenizer: "PreTrainedTokenizerBase", truncated: bool, where: str
) -> tuple[list[int], list[int]]:
    eos, eos_id, bos_id = tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None and not truncated:
        fix = "Set tokenizer.eos_token (--eos_token), or mark the rows as truncated."
        raise InputError("tokenizer.eos_token", None, f"one that ends the completion of {where}", fix)
    if eos:
        completion = completion.removesuffix(eos) + ("" if truncated else eos)
    alone, together = (list(tokenizer(text=text)["input_ids"]) for text in (prompt, prompt + completion))
    for ids in (alone, together):
        if bos_id is not None and ids[:2] == [bos_id, bos_id]:
            del ids[0]
    if list(tokenizer(text="")["input_ids"])[-1:] == [eos_id] != [bos_id]:
        del alone[-1:], together[-1:]  # a tokenizer that appends EOS by itself
    return alone, together


def _unfinished(
    prompt: list[dict[str, Any]],
    completion: list[dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    arguments: dict[str, Any],
    where: str,
) -> str:
    """[prompt | completion] as text up to the last character of the content, without the end of the turn."""
    marked = [*completion[:-1], completion[-1] | {"content": _MARK}]
    whole, other = (
        str(tokenizer.apply_chat_template(prompt + end, tokenize=False, **arguments)) for end in (completion, marked)
    )
    _, found, ending = other.rpartition(_MARK)
    if not found or not whole.endswith(ending):
        raise InputError(
            f"{where}, column 'truncated'",
            True,
            "a chat template that ends every answer with the same text",
            "Mark the row as not truncated, remove it, or use another template.",
        )
    return whole.removesuffix(ending)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _unrenderable() -> tuple[type[Exception], ...]:
    """What a template raises on messages that it does not take."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, KeyError


def common_prefix(ids: list[int], others: list[int]) -> int:
    """How many leading ids two sequences share."""
    shorter = min(len(ids), len(others))
    return next((i for i in range(shorter) if ids[i] != others[i]), shorter)
