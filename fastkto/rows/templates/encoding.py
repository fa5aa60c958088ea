"""One row of text or messages -> token ids of the prompt alone and of [prompt | completion]."""

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError
from fastkto.rows.shapes.faults import UNRENDERABLE, Unusable
from fastkto.rows.shapes.messages import json_cell
from fastkto.rows.templates.builtin import read_chat_template
from fastkto.rows.templates.long_text import LONG, first_ids
from fastkto.rows.templates.parts import readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "fastkto:content"
__all__ = ["common_prefix", "encode_row", "prompt_key", "read_chat_template", "tokenize_row"]


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


def encode_row(
    row: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None,
    where: str,
    max_length: int | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt alone and of [prompt | completion].

    Of a text that is very long and will be cut at `max_length`, only those ids that may be kept.
    """
    truncated = bool(row.get("truncated"))
    enough = None if max_length is None else 2 * max_length + 2  # y' stands behind shorter prompts too
    if isinstance(row["prompt"], str):
        return _encode_text(row["prompt"], row["completion"], tokenizer, truncated, where, enough)
    if not (chat_template or tokenizer.chat_template):
        raise InputError(
            "chat_template",
            None,
            f"one, because {where} holds messages",
            "Give one with --chat_template PATH, or chatml for a base model, or write prompt and completion as plain "
            "text.",
        )
    arguments = {"tools": json_cell(row.get("tools"), f"{where}, column 'tools'")}
    given = json_cell(row.get("chat_template_kwargs"), f"{where}, column 'chat_template_kwargs'") or {}
    if not isinstance(given, dict):
        raise Unusable(f"{where}, column 'chat_template_kwargs'", given, "a mapping", "Write it as {name: value}.")
    arguments |= given
    if chat_template:
        arguments["chat_template"] = chat_template

    def render(messages: list[dict[str, Any]], **more: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments, **more))

    def ids(messages: list[dict[str, Any]], **more: Any) -> list[int]:
        if enough is not None and _characters(messages) > LONG:
            return first_ids(tokenizer, render(messages, **more), enough, where, add_special_tokens=False)
        rendered: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments, **more)
        return list(rendered["input_ids"])

    try:
        prompt, completion = readable(row["prompt"], row["completion"], render, where)
        alone = ids(prompt, add_generation_prompt=True)
        if truncated:
            text = _unfinished(prompt, completion, render, where)
            together = first_ids(tokenizer, text, enough, where, add_special_tokens=False)
        else:
            together = ids(prompt + completion)
    except InputError:
        raise
    except _unrenderable() as error:
        fix = "Correct the messages or the template."
        said = f"{type(error).__name__}: {error}"
        raise Unusable(where, said, "messages that the chat template takes", fix, UNRENDERABLE) from error
    return alone, together


def _characters(messages: list[dict[str, Any]]) -> int:
    contents = [message.get("content") for message in messages]
    return sum(len(content) for content in contents if isinstance(content, str))


def _encode_text(
    prompt: str,
    completion: str,
    tokenizer: "PreTrainedTokenizerBase",
    truncated: bool,
    where: str,
    enough: int | None,
) -> tuple[list[int], list[int]]:
    eos, eos_id, bos_id = tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None and not truncated:
        fix = "Set tokenizer.eos_token (--eos_token), or mark the rows as truncated."
        raise InputError("tokenizer.eos_token", None, f"one that ends the completion of {where}", fix)
    if eos:
        completion = completion.removesuffix(eos) + ("" if truncated else eos)
    alone, together = (first_ids(tokenizer, text, enough, where) for text in (prompt, prompt + completion))
    for ids in (alone, together):
        if bos_id is not None and ids[:2] == [bos_id, bos_id]:
            del ids[0]
    if list(tokenizer(text="")["input_ids"])[-1:] == [eos_id] != [bos_id]:
        del alone[-1:], together[-1:]  # a tokenizer that appends EOS by itself
    return alone, together


def _unfinished(
    prompt: list[dict[str, Any]], completion: list[dict[str, Any]], render: Callable[..., str], where: str
) -> str:
    """[prompt | completion] as text up to the last character of the content, without the end of the turn."""
    marked = [*completion[:-1], completion[-1] | {"content": _MARK}]
    whole, other = (render(prompt + end) for end in (completion, marked))
    _, found, ending = other.rpartition(_MARK)
    if not found or not whole.endswith(ending):
        raise Unusable(
            f"{where}, column 'truncated'",
            True,
            "a chat template that ends every answer with the same text",
            "Mark the row as not truncated, remove it, or use another template.",
        )
    return whole.removesuffix(ending)


def _unrenderable() -> tuple[type[Exception], ...]:
    """What a template raises on messages that it does not take."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, KeyError


def common_prefix(ids: list[int], others: list[int]) -> int:
    """How many leading ids two sequences share."""
    shorter = min(len(ids), len(others))
    return next((i for i in range(shorter) if ids[i] != others[i]), shorter)
