"""An output directory belongs to one run: held while that trains, and an older run's files moved aside first."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers.utils import logging

from fastkto.disk import METRICS_FILE, writing
from fastkto.errors import InputError
from fastkto.training.output.card.text import FILE as CARD
from fastkto.training.output.card.text import is_ours
from fastkto.training.output.record import FILE as RECORD

logger = logging.get_logger(__name__)

LOCK, HOLDER = ".run.lock", ".run.holder"
OF_A_RUN = ("checkpoint-*", METRICS_FILE, RECORD)
"""What shows that a run was here."""
ITS_RESULTS = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "config.json", "generation_config.json"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "chat_template.jinja", "trainer_state.json", "training_args.bin"),
    *("README.md", "report.png", "run.yaml"),
)


@contextlib.contextmanager
def owned(folder: str, accelerator: Any, *, main_process: bool, fresh: bool) -> Iterator[None]:
    """Inside the block this run alone writes here; one that starts anew first moves what an older one left.

    The lock ends with the process that holds it. Errors, on every rank: `InputError` where another run holds it.
    """
    lock = _lock(Path(folder)) if main_process else None
    problem = _acquired(lock, Path(folder))
    if accelerator.num_processes > 1:
        problem = next(filter(None, gather_object([problem])), None)
    if problem is not None:
        _release(lock)
        fix = "Wait for its end, or choose another output_dir."
        raise InputError("output_dir", folder, f"a folder that no other run is writing to, but {problem}", fix)
    try:
        if fresh and main_process:
            move_aside(Path(folder))
        accelerator.wait_for_everyone()
        yield
    finally:
        _release(lock)


def move_aside(folder: Path) -> None:
    """Put what an older run left into `earlier-N`, and say so; other files stay."""
    if not any(_of_a_run(path) for pattern in OF_A_RUN for path in folder.glob(pattern)):
        return
    number = next(n for n in range(1, 1_000_000) if not (folder / f"earlier-{n}").exists())
    aside = folder / f"earlier-{number}"
    with writing("output_dir", folder, "a folder for the files of an earlier run"):
        aside.mkdir()
        for path in sorted({path for pattern in (*OF_A_RUN, *ITS_RESULTS) for path in folder.glob(pattern)}):
            if _of_a_run(path):
                os.rename(path, aside / path.name)
    logger.warning(f"{folder} holds an earlier run. Its files are now in {aside}.")


def _of_a_run(path: Path) -> bool:
    """Not a file of the user's that is only called like one."""
    if path.name.startswith("checkpoint-"):
        return path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal()
    return path.name != CARD or is_ours(path)


def _lock(folder: Path) -> Any:
    from filelock import FileLock

    with writing("output_dir", folder, "the files of a run"):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCK, timeout=0)


def _acquired(lock: Any, folder: Path) -> str | None:
    """Who else holds the folder, or None once it is ours."""
    from filelock import Timeout

    if lock is None:
        return None
    holder = folder / HOLDER
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError):
            return f"{holder.read_text(encoding='utf-8').strip()} is"
        return "another process is"
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{folder} cannot be locked ({error}): nothing keeps a second run out of it.")
        return None
    with writing("output_dir", folder, "the files of a run"):
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return None


def _release(lock: Any) -> None:
    if lock is not None and lock.is_locked:
        with contextlib.suppress(OSError):
            os.unlink(Path(lock.lock_file).with_name(HOLDER))
        lock.release()
