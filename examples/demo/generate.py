"""Batched answers and their log-probs."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids


@dataclass(frozen=True)
class Answer:
    """A completion: its tokens (the end-of-turn token included, if it came), its text, whether it finished."""

    ids: list[int]
    text: str
    finished: bool


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[Answer]:
    """One answer a question, all in one left-padded batch: greedy, or sampled where `temperature` is above 0."""
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    ids = model.generate(**batch, **how, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
    return [_answer(tokenizer, row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]


def _answer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Answer:
    finished = tokenizer.eos_token_id in ids
    if finished:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    return Answer(ids, tokenizer.decode(ids, skip_special_tokens=True), finished)


@torch.no_grad()
def token_logps(
    model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]], *, batch: int = 16
) -> list[torch.Tensor]:
    """The fp32 log-prob of each completion token, one tensor for each (prompt ids, completion ids)."""
    return [logps for start in range(0, len(pairs), batch) for logps in _score(model, pairs[start : start + batch])]


def _score(model: PreTrainedModel, pairs: list[Pair]) -> list[torch.Tensor]:
    rows = [torch.tensor(prompt + completion) for prompt, completion in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    scored = []
    for (prompt, completion), row, row_ids in zip(pairs, logits, ids, strict=True):
        start, end = len(prompt), len(prompt) + len(completion)
        loss = torch.nn.functional.cross_entropy(row[start - 1 : end - 1].float(), row_ids[start:end], reduction="none")
        scored.append(-loss.cpu())
    return scored
