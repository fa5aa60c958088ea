"""The preview as one page of HTML, faults first: to send to whoever collected the thumbs. It needs no other file."""

from collections.abc import Sequence
from html import escape

from fastkto.pairs.balance import obeys_rule
from fastkto.rows.shapes.summary import CONTRADICTION, DUPLICATE, TOO_LONG
from fastkto.tools.preview.example import Example
from fastkto.tools.preview.gathering import PERCENTILES, Preview, Untrainable, percent_name, weights

LONGEST = 1500
"""Characters of a prompt or answer that are shown; the middle of longer ones is left out."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667080; --line: #d9dde3; --page: #fff; --card: #f6f7f9;
  --up: #1f7a4d; --down: #b3402f; --mark: #fff1b8; --fault: #b3402f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa4b2; --line: #3a414c; --page: #16191e;
  --card: #1e2229; --up: #57b98a; --down: #e08573; --mark: #57491a; --fault: #e08573; } }
body { margin: 0 auto; max-width: 52rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
p { margin: .25rem 0; }
.soft { color: var(--soft); }
ul.faults { list-style: none; margin: 0; padding: 0; }
ul.faults > li { border-left: 4px solid var(--fault); background: var(--card); padding: .6rem .9rem; margin: .5rem 0; }
ul.notes > li { border-left-color: var(--soft); }
.bar { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden; margin: .5rem 0; background: var(--line); }
.bar span { display: block; height: 100%; }
.up { color: var(--up); } .down { color: var(--down); }
.bar .up { background: var(--up); } .bar .down { background: var(--down); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--soft); } th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
article { border: 1px solid var(--line); border-radius: 6px; margin: .75rem 0; overflow: hidden; }
article header { background: var(--card); padding: .35rem .9rem; font-size: .9rem; }
article pre { margin: 0; padding: .75rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .9rem/1.55 ui-monospace, monospace; }
mark { background: var(--mark); color: inherit; }
"""


def page(preview: Preview, title: str) -> str:
    """The page; `title` names the data. Every text of the data is escaped."""
    p = preview
    first = "the first " if p.streamed else ""
    readers = "".join(f"; read as {escape(source.reader)}" for source in p.summary.sources if source.reader)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{_count(p.report.kept, "row")} to train on, from {first}{_count(p.source, "record")}; '
        f"{_count(p.prompts, 'prompt')}{readers}.</p>",
        *_faults(p),
        "<h2>Thumbs</h2>",
        *_balance(p),
        *_sources(p),
        "<h2>Lengths in tokens</h2>",
        _lengths(p),
        "<h2>Rows as the model sees them</h2>",
        '<p class="soft">What is <mark>marked</mark> is scored; the rest is context.</p>',
        *(_example(example) for example in p.of_each_label),
    ]
    return _document(title, body)


def page_of_faults(error: Untrainable, title: str) -> str:
    """The page of data that does not train: why not, and everything that is wrong with it."""
    summary = error.summary
    found = [f"Left out: {line}" for source in summary.sources for line in source.left_out]
    items = "".join(f"<li>{escape(line)}.</li>" for line in (*summary.fault_lines(), *found))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">As it is, this data cannot be trained on. {escape(str(error))}</p>',
        f'<h2>Faults</h2><ul class="faults">{items}</ul>',
        '<p class="soft">In brackets are the first rows of each kind; the first row of a file is 0.</p>',
    ]
    return _document(title, body)


def _document(title: str, body: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    start = f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>\n'
    return start + "\n".join(body) + "\n</body>\n</html>\n"


def _faults(p: Preview) -> list[str]:
    """What is wrong with the data, the worst first, then what was chosen on purpose."""
    found: list[str] = []
    faults = {fault.kind: fault for fault in p.summary.faults}
    if opposed := faults.pop(CONTRADICTION, None):
        text = f"The same answer under both labels: {_count(opposed.rows, 'row')}; with equal weights they cancel."
        examples = "".join(_example(example) for example in p.opposed)
        found.append(f"{text} Decide which label is right, or remove both.{examples}")
    if not (p.desirable and p.undesirable):
        found.append("All thumbs point the same way. Collect some of the other kind.")
    found += [f"Left out: {escape(line)}." for source in p.summary.sources for line in source.left_out]
    found += [f"Left out: {escape(str(fault))}." for kind, fault in faults.items() if kind not in (TOO_LONG, DUPLICATE)]
    if p.report.dropped:
        text = f"{_count(p.report.dropped, 'row')} left out: the prompt alone is {p.max_length} tokens or longer."
        found.append(text)
    if p.report.cut:
        found.append(f"{_count(p.report.cut, 'answer')} cut where prompt and answer reach {p.max_length} tokens.")
    if p.duplicates:
        found.append(f"{_count(p.duplicates, 'row')} repeat the question and answer of another row.")
    if p.ties:
        found.append(f"{_count(p.ties, 'row')} exactly at the threshold, read as desirable.")
    if p.report.diverged:
        left = escape(repr(p.report.diverged_text))
        text = f"{_count(p.report.diverged, 'prompt')} tokenised differently before an answer than alone"
        found.append(f"{text}; {left} is left out.")
    if p.desirable and p.undesirable and not _balanced(p):
        found.append(f"Thumbs up and down weigh unevenly: {escape(weights(p))}.")
    items = "".join(f"<li>{text}</li>" for text in found)
    shown = ["<h2>Faults</h2>", f'<ul class="faults">{items}</ul>' if found else "<p>None found.</p>"]
    if p.chosen:
        chosen = "".join(f"<li>{escape(line)}.</li>" for line in p.chosen)
        shown += ["<h2>Chosen on purpose</h2>", f'<ul class="faults notes">{chosen}</ul>']
    return shown


def _balanced(p: Preview) -> bool:
    return obeys_rule(p.desirable, p.undesirable, p.desirable_weight, p.undesirable_weight)


def _balance(p: Preview) -> list[str]:
    total = p.desirable + p.undesirable
    up, down = (f"{100 * n / total:.1f}%" for n in (p.desirable, p.undesirable))
    parts = "".join(
        f'<span class="{kind}" style="width:{share}"></span>' for kind, share in (("up", up), ("down", down))
    )
    return [
        f'<div class="bar">{parts}</div>',
        f'<p><span class="up">{p.desirable} desirable ({up})</span>, '
        f'<span class="down">{p.undesirable} undesirable ({down})</span></p>',
        *([f"<p>Row weights: {p.summary.weights}.</p>"] if p.summary.weights else []),
    ]


def _sources(p: Preview) -> list[str]:
    if len(p.by_source) < 2:
        return []
    rows = [(name, str(good), str(bad)) for name, good, bad in p.by_source]
    return ["<h2>Where they come from</h2>", _table(("source", "desirable", "undesirable"), rows)]


def _lengths(p: Preview) -> str:
    kinds = (("prompt", p.prompt_lengths), ("answer", p.completion_lengths))
    rows = [(name, *map(str, lengths)) for name, lengths in kinds]
    return _table(("", *map(percent_name, PERCENTILES)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _example(example: Example) -> str:
    kind = '<span class="up">desirable</span>' if example.label else '<span class="down">undesirable</span>'
    prompt, answer = escape(_shorten(example.prompt)), escape(_shorten(example.answer))
    return f"<article><header>{example.where}, {kind}</header><pre>{prompt}<mark>{answer}</mark></pre></article>"


def _shorten(text: str) -> str:
    left_out = len(text) - LONGEST
    half = LONGEST // 2
    return text if left_out <= 0 else f"{text[:half]} [... {left_out} characters ...] {text[-half:]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
