"""The working folder of a case: a model, data, a config that trains, an earlier run; and what of it changed."""

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_llama, tiny_tokenizer

from fastkto.cli import main

ROWS: list[dict[str, object]] = [
    {"prompt": f"question {i}?", "completion": f" answer {i * i}", "label": i % 2 == 0} for i in range(8)
]
VALUES = {
    "model_name_or_path": "model",
    "dataset_name": "data.jsonl",
    "output_dir": "out",
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "save_steps": 1,
    "logging_steps": 1,
    "use_cpu": "true",
    "disable_tqdm": "true",
    "report_to": "none",
}


def jsonl(path: str, rows: list[dict[str, object]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(**changes: object) -> None:
    """config.yaml; None leaves a line out."""
    lines = [f"{key}: {value}\n" for key, value in (VALUES | changes).items() if value is not None]
    Path("config.yaml").write_text("".join(lines))


def append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


def cut(path: str | Path) -> None:
    path = Path(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_json(path: str, **changes: object) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | changes))


def rewrite_weights(folder: str | Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    path = Path(folder) / "model.safetensors"
    changed = {name: change(name, x) for name, x in load_file(path).items()}
    save_file({name: x for name, x in changed.items() if x is not None}, path, metadata={"format": "pt"})


def template(folder: Path) -> None:
    """What every case starts from, with an earlier run of one checkpoint and a reference cache."""
    folder.mkdir()
    with contextlib.chdir(folder):
        tiny_llama().save_pretrained("model")
        tiny_tokenizer().save_pretrained("model")
        jsonl("data.jsonl", ROWS)
        settings(output_dir="earlier", max_steps=1, precompute_ref_log_probs="true")
        assert run(["train", "config.yaml"])[0] == 0
        Path("out").mkdir()
        Path("out/notes.txt").write_text("of mine")


@contextlib.contextmanager
def working_folder(source: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fault-") as scratch:
        folder = Path(scratch) / "here"
        shutil.copytree(source, folder)
        with contextlib.chdir(folder):
            yield folder


def contents() -> dict[str, bytes | None]:
    """Every file below the working directory with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def run(argv: list[str]) -> tuple[int, str]:
    """The command line in this process: its exit code and what it says on stderr, log lines aside."""
    said = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(argv)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
    finally:
        logging.disable(level)
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    lines = said.getvalue().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("fastkto")), len(lines))
    return code, "\n".join(lines[start:])
