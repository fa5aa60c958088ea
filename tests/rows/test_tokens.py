"""Token ids are TRL's on ordinary rows; the ends of rows, templates and limits behave as documented."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from tiny import CHAT_TEMPLATE, tiny_tokenizer

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.labels import warn_once
from fastkto.rows.tokens import COLUMNS, prompt_key, tokenize, tokenize_row, tokenize_with_report

DEMO = Path(__file__).parents[3] / "shared" / "data" / "kto_en_demo.json"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def text_rows(*pairs, **more):
    return Dataset.from_list(
        [{"prompt": x, "completion": y, "label": i % 2 == 0} | more for i, (x, y) in enumerate(pairs)]
    )


def chat_rows(*pairs, **more):
    rows = [{"prompt": [user(x)], "completion": [assistant(y)]} | more for x, y in pairs]
    return Dataset.from_list([row | {"label": i % 2 == 0} for i, row in enumerate(rows)])


def decoded(dataset, tokenizer):
    return [(tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["completion_ids"])) for row in dataset]


def run(dataset, tokenizer, max_length=None, **options):
    return tokenize(normalise(dataset), tokenizer, max_length=max_length, **options)


def trl_ids(dataset, tokenizer, max_length=None):
    from trl import KTOTrainer

    trainer = SimpleNamespace(_tokenizer=tokenizer, calculate_KL=False, undesirable_weight=1.0, desirable_weight=1.0)
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length)
    prepared = KTOTrainer._prepare_dataset(trainer, dataset, tokenizer, args, "train")
    return list(zip(prepared["prompt_ids"], prepared["completion_ids"], strict=True))


def ids(dataset):
    return list(zip(dataset["prompt_ids"], dataset["completion_ids"], strict=True))


@pytest.mark.skipif(not DEMO.exists(), reason="the shared demo data is not beside this checkout")
@pytest.mark.parametrize("every_turn", [False, True])
def test_ids_are_trls_on_the_demo_data(every_turn):
    tokenizer = tiny_tokenizer()
    rows = normalise(read_rows(DEMO), RowOptions(every_assistant_turn=every_turn)).select(range(150))
    ours, report = tokenize_with_report(rows, tokenizer, max_length=1024)
    theirs = trl_ids(rows.select_columns(["prompt", "completion", "label"]), tokenizer, max_length=1024)
    assert ids(ours) == theirs
    assert report.dropped == 150 - len(theirs) > 0
    assert report.cut == sum(len(x) + len(y) > 1024 for x, y in theirs) > 0


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", ["</s>", "<|end|>"])
def test_ids_are_trls_on_text(bos, eos):
    tokenizer = tiny_tokenizer(chat=False, bos=bos, eos=eos)
    rows = text_rows(("a b", " c"), ("", "c"), ("a", f"c{eos}"), ("caf\u00e9\0", "\u4e16"))
    assert ids(run(rows, tokenizer)) == trl_ids(rows, tokenizer)


def test_ids_are_trls_with_tools_and_template_arguments():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools | length if tools else 'none' }} {{ style }}:" + CHAT_TEMPLATE
    rows = chat_rows(("a", "b"), tools='[{"name": "f"}]', chat_template_kwargs={"style": "terse"})
    assert ids(run(rows, tokenizer)) == trl_ids(rows, tokenizer)
    assert decoded(run(rows, tokenizer), tokenizer)[0][0].startswith("1 terse:")


def test_the_text_after_the_end_of_turn_is_scored_as_in_trl():
    tokenizer = tiny_tokenizer()
    rows = chat_rows(("a", "b"))
    assert decoded(run(rows, tokenizer), tokenizer) == [("<|user|>a<|end|>\n<|assistant|>", "b<|end|>\n")]


def test_text_gets_one_eos_and_one_bos():
    tokenizer = tiny_tokenizer(chat=False, bos=True)
    rows = text_rows(("a", "b"), ("<s>a", "b</s>"))
    assert decoded(run(rows, tokenizer), tokenizer) == [("<s>a", "b</s>")] * 2


def test_a_tokenizer_that_appends_eos_itself_does_not_double_it():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(chat=False)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert decoded(run(text_rows(("a", "b")), tokenizer), tokenizer) == [("<s>a", "b</s>")]
    assert decoded(run(text_rows(("a", "b"), truncated=True), tokenizer), tokenizer) == [("<s>a", "b")]


def test_a_template_that_writes_bos_does_not_double_it():
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    prompt, completion = decoded(run(chat_rows(("a", "b")), tokenizer), tokenizer)[0]
    assert prompt + completion == "<s><|user|>a<|end|>\n<|assistant|>b<|end|>\n"


@pytest.mark.parametrize("content", ["b", " b c", "b<|end|>", "caf\u00e9\nb"])
def test_truncated_conversations_end_with_their_last_word(content):
    tokenizer = tiny_tokenizer()
    rows = chat_rows(("b", content), truncated=True)
    assert decoded(run(rows, tokenizer), tokenizer) == [("<|user|>b<|end|>\n<|assistant|>", content)]


def test_truncated_text_has_no_eos_and_needs_none():
    tokenizer = tiny_tokenizer(chat=False)
    rows = text_rows(("a", "b"), ("a", "b</s>"), truncated=True)
    assert decoded(run(rows, tokenizer), tokenizer) == [("a", "b")] * 2
    tokenizer.eos_token = None
    assert decoded(run(text_rows(("a", "b"), truncated=True), tokenizer), tokenizer) == [("a", "b")]


def test_truncated_needs_a_template_with_one_ending():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{{ m.content[0] }}{% endfor %}"
    with pytest.raises(InputError, match=r"row 0, column 'truncated'.*ends every answer"):
        run(chat_rows(("a", "b"), truncated=True), tokenizer)


def test_a_template_that_renders_the_prompt_differently_alone(caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|assistant|>'", "'<|assistant|><think>'")
    rows = normalise(chat_rows(("a", "b"), ("c", "d"), ("e", "f")))
    with caplog.at_level(logging.WARNING):
        tokens, report = tokenize_with_report(rows, tokenizer, max_length=None)
    assert decoded(tokens, tokenizer)[0] == ("<|user|>a<|end|>\n<|assistant|>", "b<|end|>\n")
    assert report.diverged == 3
    assert report.diverged_text == "<think>"
    assert caplog.text.count("left out: '<think>'") == 1
    assert "(3 of 3 rows)" in caplog.text


def test_columns_and_types():
    tokens = run(text_rows(("a", "b"), ("c", "d")), tiny_tokenizer(chat=False))
    assert tuple(tokens.column_names) == COLUMNS
    assert tokens["label"][:] == [True, False]
    assert tokens["conversation"][:] == tokens["row_id"][:] == [0, 1]


def test_idempotent_and_the_same_for_any_number_of_processes():
    tokenizer = tiny_tokenizer()
    rows = chat_rows(*((f"question {i}" * (i % 7), f"answer {i}") for i in range(1, 40)))
    one = run(rows, tokenizer, max_length=60)
    assert run(one, tokenizer, max_length=60)[:] == one[:]
    three = run(rows, tokenizer, max_length=60, num_proc=3)
    assert three[:] == one[:]
    assert one["row_id"][:] != list(range(len(one)))


def test_an_error_in_a_worker_process_arrives_whole():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no bad') }}{% endif %}" + CHAT_TEMPLATE
    )
    rows = chat_rows(*((f"{'bad' if i == 7 else 'good'}", "b") for i in range(9)))
    for num_proc in (None, 2):
        with pytest.raises(InputError, match=r"train row 7.*no bad"):
            run(rows, tokenizer, num_proc=num_proc)


def test_rows_tokenised_elsewhere():
    foreign = Dataset.from_list([{"prompt_ids": [1, 2], "completion_ids": [3], "label": 1, "KL_completion_ids": [4]}])
    [row] = run(foreign, tiny_tokenizer())
    expected = {"prompt_ids": [1, 2], "completion_ids": [3], "label": True, "row_id": 0, "conversation": 0}
    assert row == expected | {"prompt_key": prompt_key([1, 2])}
    for bad in ({"completion_ids": []}, {"prompt_ids": [-1]}, {"prompt_ids": "a"}, {"label": None}):
        with pytest.raises(InputError, match="row 0"):
            run(Dataset.from_list([{"prompt_ids": [1], "completion_ids": [2], "label": True} | bad]), tiny_tokenizer())


def test_a_prompt_that_fills_max_length_is_dropped_and_counted(caplog):
    tokenizer = tiny_tokenizer(chat=False)
    rows = normalise(text_rows(("aaaa", "b"), ("aaa", "b"), ("aaaaa", "b"), ("a", "bbbbb")))
    with caplog.at_level(logging.WARNING):
        tokens, report = tokenize_with_report(rows, tokenizer, max_length=4)
    assert tokens["row_id"][:] == [1, 3]
    assert (report.rows, report.dropped, report.cut) == (4, 2, 2)
    assert "2 of 4 train rows dropped" in caplog.text
    with pytest.raises(InputError, match=r"max_length: got 1, expected more than .* \(the shortest has 1 tokens\)"):
        tokenize(rows, tokenizer, max_length=1)


def test_streams_are_lazy_and_the_same(caplog):
    warn_once.cache_clear()
    tokenizer = tiny_tokenizer()
    rows = chat_rows(*((f"question {i}" * (i % 7), f"answer {i}") for i in range(1, 40)))
    read = []

    def source():
        for row in rows:
            read.append(row)
            yield row

    stream = run(IterableDataset.from_generator(source), tokenizer, max_length=60)
    iterator = iter(stream)
    first = next(iterator)
    assert len(read) < 10
    expected = list(run(rows, tokenizer, max_length=60))
    assert [first, *iterator] == expected
    assert caplog.text.count("are dropped") == 1
    assert list(run(stream, tokenizer, max_length=60)) == expected


def test_a_stream_warns_once_of_prompts_that_diverge_each_in_its_own_way(caplog):
    tokenizer = tiny_tokenizer()
    turn = "'<|assistant|>'"
    assert turn in CHAT_TEMPLATE
    tokenizer.chat_template = CHAT_TEMPLATE.replace(turn, "'<|assistant|>' + messages[-1].content")
    stream = chat_rows(*((f"question {i}", f"answer {i}") for i in range(4))).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        list(run(stream, tokenizer, dataset_name="diverging"))
    assert caplog.text.count("A prompt of diverging is tokenised differently") == 1
    assert "left out: 'question 0'" in caplog.text


def test_what_a_tokenizer_lacks():
    tokenizer = tiny_tokenizer(chat=False)
    with pytest.raises(
        InputError, match=r"chat_template.*row 0 holds messages.*--chat_template PATH, or .* plain text"
    ):
        run(chat_rows(("a", "b")), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"tokenizer\.eos_token: got None.*row 0"):
        run(text_rows(("a", "b")), tokenizer)


def test_chat_template_by_path_or_text(tmp_path):
    tokenizer = tiny_tokenizer(chat=False, eos="<|end|>")
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    expected = ids(run(chat_rows(("a", "b")), tiny_tokenizer()))
    for template in (CHAT_TEMPLATE, str(tmp_path / "chat.jinja")):
        assert ids(run(chat_rows(("a", "b")), tokenizer, chat_template=template)) == expected
    with pytest.raises(InputError, match="a Jinja file that exists"):
        run(chat_rows(("a", "b")), tokenizer, chat_template=str(tmp_path / "none.jinja"))


def test_completions_that_leave_nothing_to_score():
    tokenizer = tiny_tokenizer(chat=False)
    with pytest.raises(InputError, match=r"row 0, completion.*at least one token to score"):
        run(text_rows(("", "b"), truncated=True), tokenizer)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match=r"row 0, completion.*at least one token to score"):
        run(chat_rows(("a", "b")), tokenizer)


def test_templates_never_see_the_empty_fields_that_arrow_adds():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.tool_calls | string if m.tool_calls else m.content }}{% endfor %}"
    )
    call = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    other = [{"function": {"name": "g", "arguments": {"y": 2}}}]
    rows = Dataset.from_list(
        [
            {"prompt": [user("a")], "completion": [{"role": "assistant", "tool_calls": calls}], "label": True}
            for calls in (call, other)
        ]
    )
    assert decoded(run(rows, tokenizer), tokenizer) == [("a", str(call)), ("a", str(other))]


def test_one_row_by_itself():
    tokenizer = tiny_tokenizer(chat=False)
    prompt, completion = tokenize_row({"prompt": "ab", "completion": "c"}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt + completion) == ["a", "b", "c", "</s>"]
    assert len(prompt) == 2
