"""Public reports, A4, A5 and A14, and the templates that TRL ships: ids are stock's, or both refuse."""

import random

import pytest
from conversations import CONVERSATIONS, compare, template_names
from datasets import Dataset, IterableDataset
from stock import WORDS, answer, chat_ids, right, template, trained, user
from tiny import CHAT_TEMPLATE, tiny_tokenizer

from fastkto.errors import InputError
from fastkto.rows.templates import long_text

SAMPLE = ("cohere2", "qwen3", "llama3", "gemma", "deepseekv3", "gptoss", "glm4moe", "phi3")


def chat(text):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


READS_PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ONLY_USERS_PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'user' and m.content is not string %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("text", [template("qwen3"), template("llama3"), template("gemma"), CHAT_TEMPLATE])
@pytest.mark.parametrize("streaming", [False, True])
def test_A4_parts_are_joined_for_a_template_that_reads_text_only(text, streaming):
    tokenizer = chat(text)
    rows = [
        {"messages": [user(parts("q ", w)), answer(parts(f'it\'s "{w}"'))], "label": i % 2} for i, w in enumerate(WORDS)
    ]
    expected = right(
        (chat_ids(tokenizer, [user("q " + w)], [answer(f'it\'s "{w}"')]), i % 2) for i, w in enumerate(WORDS)
    )
    data = IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)
    assert trained(data, tokenizer) == expected


def test_A4_a_template_that_reads_parts_gets_them():
    tokenizer = chat(READS_PARTS)
    rows = [{"messages": [user(parts("q", w)), answer(parts(w))], "label": i % 2} for i, w in enumerate(WORDS)]
    expected = right((chat_ids(tokenizer, r["messages"][:1], r["messages"][1:]), r["label"]) for r in rows)
    assert trained(Dataset.from_list(rows), tokenizer) == expected
    half = chat(ONLY_USERS_PARTS)
    expected = right(
        (chat_ids(half, r["messages"][:1], [answer(w)]), r["label"]) for r, w in zip(rows, WORDS, strict=True)
    )
    assert trained(Dataset.from_list(rows), half) == expected


def test_A4_a_part_that_is_no_text_is_refused_by_its_row():
    picture = [{"type": "image_url", "image_url": {"url": "a.png"}}, *parts("what?")]
    rows = [{"messages": [user(content), answer("b")], "label": 1} for content in ("a", picture)]
    for data in (
        IterableDataset.from_generator(lambda: iter(rows)),
        Dataset.from_list(rows, on_mixed_types="use_json"),
    ):
        with pytest.raises(InputError, match=r"row 1, message 0.*a part \{'type': 'text'"):
            trained(data, chat(template("qwen3")))


@pytest.mark.parametrize("content", ["", None])
def test_A14_reasoning_is_an_answer(content):
    tokenizer = chat(template("qwen3"))
    rows = [{"prompt": [user(w)], "completion": [answer("", reasoning_content=f"hm {w}")], "label": 1} for w in WORDS]
    expected = right((chat_ids(tokenizer, r["prompt"], r["completion"]), True) for r in rows)
    given = [row | {"completion": [row["completion"][0] | {"content": content}]} for row in rows]
    found = trained(IterableDataset.from_generator(lambda: iter(given)), tokenizer)
    assert found == expected
    assert "hm salt" in "".join(tokenizer.decode(completion) for _, completion, _ in found)


def test_A14_the_end_of_an_empty_answer_counts():
    tokenizer = chat(template("qwen3"))
    rows = [{"prompt": [user(w)], "completion": [answer("")], "label": 1} for w in WORDS]
    expected = right((chat_ids(tokenizer, r["prompt"], r["completion"]), True) for r in rows)
    assert trained(Dataset.from_list(rows), tokenizer) == expected


@pytest.mark.parametrize("name", SAMPLE)
def test_ids_are_stocks_under_templates_that_people_use(name):
    assert name in template_names()
    unlike, equal, refused = compare(name)
    assert unlike == []
    assert equal + refused == len(CONVERSATIONS)


def test_chatml_for_a_model_without_a_template():
    from fastkto.rows import normalise, tokenize

    tokenizer = tiny_tokenizer(chat=False)
    rows = [{"prompt": [user(w)], "completion": [answer(w)], "label": i % 2} for i, w in enumerate(WORDS)]
    found = tokenize(normalise(Dataset.from_list(rows)), tokenizer, max_length=None, chat_template="chatml")
    assert tokenizer.decode(found[0]["prompt_ids"]) == "<|im_start|>user\nsalt<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found[0]["completion_ids"]) == "salt<|im_end|>\n"
    tools = Dataset.from_list([row | {"tools": [{"name": "f"}]} for row in rows])
    with pytest.raises(InputError, match="row 0.*chatml has no tools"):
        tokenize(normalise(tools), tokenizer, max_length=None, chat_template="chatml")


def test_A25_the_first_ids_of_a_long_text_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(long_text, "LONG", 500)
    chance = random.Random(0)
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(chat=False, bos=True)):
        for _ in range(50):
            text = "".join(chance.choices(["<|assistant|>", "ab ", "  \n", "\xe9", "'s", "\U0001f600"], k=600))
            whole = tokenizer(text)["input_ids"]
            for enough in (3, 200, 900, len(whole) + 1):
                found = long_text.first_ids(tokenizer, text, enough, "row 0")
                assert len(found) >= min(enough, len(whole))
                assert found == whole[: len(found)]
