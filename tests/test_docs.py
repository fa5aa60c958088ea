"""The pages in docs/ are true: their commands run, their links lead somewhere, their names are those of the code."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from poison import poison, spoiled
from stock_models import family
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import rows, trainer

import fastkto

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w./]+\.(?:csv|jsonl|py|yaml))`[^`\n]*:\s*\Z")  # the line before a block that is a file
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

# pip would install over the environment that runs this test; the pytest line is this suite
NOT_HERE = ("pip install", "pytest ")


def steps(page):
    """The page's files and commands in their order, as (file name or None, text)."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        language, body = block.groups()
        if name := FILE.search(text[: block.start()]):
            yield name[1], body
        elif language == "bash" and not body.startswith(NOT_HERE):
            yield None, body
        elif language == "console":  # commands behind a $, cut down to what a page can show
            yield None, "\n".join(re.findall(r"^\$ ((?:(?! 2> | \| ).)+)", body, re.MULTILINE))


def offline(folder):
    """This environment's python and fastkto, no network, no GPU, caches in the folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | OFFLINE | {"PATH": path, "HF_HOME": str(folder / "cache")}


@pytest.mark.parametrize(
    "pages", [("from_trl", "choosing", "metrics"), ("trl",), ("data",), ("first",)], ids=lambda pages: pages[0]
)
def test_commands_run_as_written(pages, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for page in pages:
        commands = 0
        for name, text in steps(DOCS / f"{page}.md"):
            if name is not None:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(text, encoding="utf-8")
                continue
            bash = ["bash", "-euo", "pipefail", "-c", text]
            settings = {"cwd": tmp_path, "env": offline(tmp_path), "capture_output": True, "text": True}
            done = subprocess.run(bash, **settings, timeout=300, check=False)
            assert done.returncode == 0, f"{page}: {text}\n{done.stdout}\n{done.stderr}"
            commands += 1
        assert commands, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_python_compiles(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (DOCS / target).exists(), target
    for language, body in FENCE.findall(text):
        if language == "python":
            compile(body, page.name, "exec")


def first_column(page):
    """Names in backticks in the first column of a page's tables."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_metrics_page_names_what_is_logged(tmp_path, monkeypatch):
    settings = {"train_dataset": rows(24), "eval_dataset": rows(8), "max_steps": 3, "on_nonfinite": "skip"}
    t = trainer(tmp_path, model=family("Mixtral"), eval_strategy="steps", eval_steps=3, **settings)
    monkeypatch.setattr(*(spoil := poison(t, 2, spoiled("logps", 0, math.nan)))[:1], "kto_step", spoil[1])
    t.train()
    logged = {name for line in t.state.log_history for name in line}
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    figures = first_column("metrics.md")
    summary = set(re.findall(r"`((?:train|eval)_\w+|total_flos)`", text))
    evaluated = {f"eval_{name}" for name in figures} & logged
    assert figures | summary | evaluated == logged | {"eval_loss"}
    own = figures - {"grad_norm", "learning_rate", "epoch", "step", "skipped_steps"}
    assert {f"eval_{name}" for name in own} == evaluated, "the page says that an evaluation has all of them"


def test_at_the_first_step_the_figures_are_those_of_the_metrics_page(tmp_path):
    t = trainer(tmp_path, max_steps=1, desirable_weight=3.0)
    t.train()
    line = t.state.log_history[0]
    assert line["loss"] == (3.0 + 1.0) / 2 / 2
    zero = {"kl", "kl/raw", "kl/stderr", "rewards/chosen", "rewards/rejected", "saturated", "rewards/accuracies"}
    assert {name: line[name] for name in zero} == dict.fromkeys(zero, 0.0)


def public_names():
    """What docs/api.md lists as importable, by module."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(fastkto[\w.]*)` \| (.+) \|$", text, re.MULTILINE)
    return {module: re.findall(r"`(\w+)`", names.split(", which")[0]) for module, names in table}


def test_the_api_page_lists_the_public_names():
    assert public_names()["fastkto"] == sorted(fastkto.__all__)
    modules = (path.stem for path in (ROOT / "fastkto" / "integrations").iterdir())
    hosts = {f"fastkto.integrations.{name}" for name in modules if (DOCS / f"{name}.md").exists()}
    assert public_names().keys() - {"fastkto", "fastkto.errors"} == hosts


@pytest.mark.parametrize("name", sorted({*fastkto.__all__} - {"__version__"}))
def test_public_names_import_and_say_what_they_are(name):
    found = getattr(fastkto, name)
    assert found.__module__.startswith("fastkto.")
    assert len(inspect.getdoc(found) or "") > 40


def test_the_version_is_the_packages_and_semantic():
    assert re.fullmatch(r"\d+\.\d+\.\d+([-+.]\w+)*", fastkto.__version__)
    assert fastkto.__version__ == importlib.metadata.version("fastkto")


@pytest.mark.parametrize("module", [name for name in public_names() if name != "fastkto"])
def test_public_names_of_submodules_are_defined_there_with_a_docstring(module):
    source = importlib.util.find_spec(module).origin
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for name in set(public_names()[module]) - {"ValueError", "ImportError"}:
        if name in defined:  # the hosts of some are not installed here
            assert ast.get_docstring(defined[name]), name
        else:
            assert inspect.getdoc(getattr(importlib.import_module(module), name)), name


def test_the_curves_are_drawn_from_runs(tmp_path):
    shutil.copy(DOCS / "choosing.md", tmp_path)
    before = (tmp_path / "choosing.md").read_text(encoding="utf-8")
    command = [sys.executable, ROOT / "examples" / "curves.py", "--steps", "2", "--out", tmp_path]
    subprocess.run(command, env=offline(tmp_path), check=True, capture_output=True, timeout=300)
    after = (tmp_path / "choosing.md").read_text(encoding="utf-8")
    assert (tmp_path / "curves.png").stat().st_size > 20_000
    assert after != before, "the table is written by the script"
    assert [row.split("|")[1] for row in after.splitlines() if "|" in row] == [
        row.split("|")[1] for row in before.splitlines() if "|" in row
    ], "the page shows the runs of the script"
    assert after.partition("<!-- curves -->")[0] == before.partition("<!-- curves -->")[0]
