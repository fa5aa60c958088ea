"""The page of `fastkto data --html`: faults first, text decoded and escaped, and nothing fetched from elsewhere."""

import re
from html.parser import HTMLParser

from datasets import Dataset
from tiny import tiny_tokenizer

from fastkto.rows import RowOptions
from fastkto.tools.preview.gathering import preview, render
from fastkto.tools.preview.page import page


def look(records, **options):
    arguments = {"max_length": 400, "batch_size": 4} | options
    return preview(Dataset.from_list(records), tiny_tokenizer(), **arguments)


def rows(n, **more):
    return [{"prompt": f"question {i}?", "completion": f" answer {i}", "label": i % 2 == 0} | more for i in range(n)]


class Balance(HTMLParser):
    """Whether every element is closed, and which there are."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    balance = Balance()
    balance.feed(text)
    assert not balance.open
    return balance.seen


def test_one_page_that_needs_nothing_else():
    text = page(look(rows(8)), "thumbs.jsonl")
    seen = parsed(text)
    assert not {tag for tag, _ in seen} & {"script", "link", "img", "iframe"}
    assert not any(name in ("src", "href") or name.startswith("on") for _, attrs in seen for name in attrs)
    assert "url(" not in text
    assert "None found." in text
    assert "8 rows to train on, from 8 records; 8 prompts." in text


def test_text_is_decoded_escaped_and_marked_where_it_is_scored():
    said = {"prompt": "<script>alert('é')</script> & 👍🏽?", "completion": " <b>ja</b> 😀\nüber", "label": True}
    shown = look([said, *rows(7)])
    text = page(shown, "<thumbs>")
    parsed(text)
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;é&#x27;)&lt;/script&gt; &amp; 👍🏽?" in text
    assert "<mark> &lt;b&gt;ja&lt;/b&gt; 😀\nüber&lt;|end|&gt;</mark>" in text
    assert "<h1>&lt;thumbs&gt;</h1>" in text
    assert "«😀»" in render(shown)
    assert "👍·🏽·?" in render(shown)


def test_faults_come_first_and_the_worst_of_them_first():
    records = rows(8)
    records += [records[1] | {"label": True}, records[2] | {"label": False}, records[2], records[3]]
    shown = look([*records, rows(1)[0] | {"prompt": "p" * 400}])
    assert shown.contradictions == 2
    text = page(shown, "x")
    faults = text[text.index("<h2>Faults</h2>") : text.index("<h2>Thumbs</h2>")]
    found = re.findall(r"<li>([^<]+)", faults)
    says, then = found[0].split(". ", 1)
    assert says == "The same answer under both labels: 5 rows; with equal weights they cancel"
    assert then == "Decide which label is right, or remove both."
    assert found[1] == "1 row left out: the prompt alone is 400 tokens or longer."
    assert found[2] == "4 rows repeat the question and answer of another row."
    headers = re.findall(r"<header>(row \d+), <[^>]+>(\w+)<", faults)
    assert headers == [
        ("row 1", "undesirable"),
        ("row 8", "desirable"),
        ("row 2", "desirable"),
        ("row 9", "undesirable"),
    ]
    assert "contradiction: 5 rows (1, 2, 8, ...), the same answer under both labels: " in render(shown)


def test_what_a_reader_left_out_and_counts_by_source(caplog):
    def run(i, **more):
        record = {"inputs": {"input": f"q{i}"}, "outputs": {"output": f"a{i}"}, "name": "web" if i % 3 else "shop"}
        return record | {"feedback_stats": {"thumb": {"n": 1, "avg": float(i % 2)}}} | more

    records = [run(i) for i in range(9)]
    records.insert(0, run(9) | {"feedback_stats": {"thumb": None}})
    shown = look(records, options=RowOptions(reader="auto", label_column="thumb"))
    assert "left out" not in caplog.text, "it is printed, and need not be said twice"
    assert shown.by_source == [("web", 3, 3), ("shop", 1, 2)]
    text, printed = page(shown, "x"), render(shown)
    assert "read as langsmith" in text
    assert "<header>record 1, <" in text
    assert "<li>Left out: 1 not rated (record 0).</li>" in text
    assert "<tr><td>web</td><td>3</td><td>3</td></tr>" in text
    assert "rows         9 to train on, from 10 in the source; 9 prompts" in printed
    assert "left out     1 not rated (record 0)" in printed
    assert "  of         shop: 1 desirable, 2 undesirable" in printed


def test_many_sources_are_summed_up():
    records = [row | {"source": f"s{i}"} for i, row in enumerate(rows(20))]
    shown = look([*records, rows(30)[29] | {"source": None}])
    assert len(shown.by_source) == 13
    assert shown.by_source[-1][0] == "others"
    assert sum(good + bad for _, good, bad in shown.by_source) == 21


def test_long_texts_lose_their_middle_and_one_label_alone_is_a_fault():
    text = page(look([row | {"completion": "z" * 4000, "label": True} for row in rows(4)], max_length=None), "x")
    assert re.search(r"z{500} \[\.\.\. \d+ characters \.\.\.\] z{500}", text)
    assert "All thumbs point the same way." in text


def test_rows_that_are_left_out_are_faults_of_the_page():
    records = [*rows(8), rows(1)[0] | {"label": None}, rows(1)[0] | {"completion": None}]
    shown = look(records, options=RowOptions(on_unrated="drop", on_empty="drop"))
    text = page(shown, "x")
    assert "<li>Left out: no label: 1 row (8).</li><li>Left out: no answer: 1 row (9).</li>" in text
    assert "8 rows to train on, from 10 records" in text
