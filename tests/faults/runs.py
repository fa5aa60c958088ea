"""Faults of a run: each is made to happen, the run is taken up again, and what came of it is compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import crashes
import ranks

from faults.disk import FullDisk
from faults.folder import contents, run, settings, template, working_folder

VARIANT = {"lora": False, "workers": 0, "cached": True}


class Fault(NamedTuple):
    """`run` makes it happen and returns what was lost and the message; it raises where that is not as it should be."""

    done: str
    run: Callable[["Folders"], tuple[str, str]]
    slow: bool = False


class Folders:
    """Scratch folders, the template of a command line's, and the run that nothing disturbs."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self._whole = scratch, {}
        self.source = scratch / "template"
        template(self.source)

    def new(self, name: str) -> Path:
        folder = self.scratch / name.replace(" ", "-")
        folder.mkdir()
        return folder

    def whole(self) -> dict[str, object]:
        if not self._whole:
            folder = self.new("whole")
            assert crashes.in_a_process(folder, VARIANT) == 0
            self._whole = json.loads((folder / "result.json").read_text())
        return self._whole


FAULTS: dict[str, Fault] = {}


def fault(name: str, done: str, *, slow: bool = False) -> Callable[[Callable[[Folders], tuple[str, str]]], None]:
    def add(function: Callable[[Folders], tuple[str, str]]) -> None:
        FAULTS[name] = Fault(done, function, slow)

    return add


def killed(moment: str | None, again: str | None = None) -> Callable[[Folders], tuple[str, str]]:
    def happen(folders: Folders) -> tuple[str, str]:
        folder = folders.new(f"killed {moment} {again}")
        assert crashes.in_a_process(folder, VARIANT, moment) == -signal.SIGKILL, "it was not killed"
        if again is not None:
            assert crashes.in_a_process(folder, VARIANT, None, again) == -signal.SIGKILL, "it was not killed again"
        assert crashes.in_a_process(folder, VARIANT) == 0, "it does not resume"
        result = json.loads((folder / "result.json").read_text())
        assert result == folders.whole(), "the resumed run is another one"
        return "nothing", "(none: SIGKILL)"

    return happen


for moment in crashes.MOMENTS:
    if not moment.startswith("by the clock"):
        slow = moment not in ("within the weights", "within a write of the cache")
        fault(f"kill -9 {moment}", "resumed: same curve and weights, bit for bit", slow=slow)(killed(moment))
for again in crashes.AFTER_A_RESUME:
    fault(f"kill -9 {again}, resumed", "resumed again: same curve and weights", slow=True)(
        killed("between the gradients and the optimizer", again)
    )


@fault("SIGTERM", "checkpoint, exit code 143, resumed to the end", slow=True)
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        settings(max_steps=4000, save_steps=4000, logging_steps=1)
        log = Path("out/metrics.jsonl")
        child = start("train", "config.yaml")
        wait_for(lambda: log.is_file() and log.stat().st_size > 0, child)
        child.send_signal(signal.SIGTERM)
        said = child.communicate(timeout=60)[1]
        assert child.returncode == 143, said[-2000:]
        (checkpoint,) = Path("out").glob("checkpoint-*")
        done = int(checkpoint.name.partition("-")[2])
        settings(max_steps=done + 2, resume_from_checkpoint="true")
        assert run(["train", "config.yaml"])[0] == 0
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
        assert steps == list(range(1, done + 3)), steps
        return "nothing", last(said, "SIGTERM")


@fault("a full disk during a checkpoint", "half a checkpoint removed, the one before it resumed")
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        settings(max_steps=1)
        assert run(["train", "config.yaml"])[0] == 0
        before = {k: v for k, v in contents().items() if k.startswith("out/checkpoint-1")}
        settings(max_steps=2, resume_from_checkpoint="true")
        with FullDisk(40_000):
            code, said = run(["train", "config.yaml"])
        assert code == 1, said
        assert {k: v for k, v in contents().items() if k.startswith("out/checkpoint")} == before
        assert run(["train", "config.yaml"])[0] == 0
        return "nothing", said


@fault("a full disk during a line of the log", "stopped; resumed from the checkpoint")
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        settings(max_steps=1)
        assert run(["train", "config.yaml"])[0] == 0
        settings(max_steps=2, resume_from_checkpoint="true")
        with FullDisk(100):
            code, said = run(["train", "config.yaml"])
        assert code == 1, said
        assert run(["train", "config.yaml"])[0] == 0
        return "nothing", said


@fault("a full disk during a write of the reference cache", "stopped; the cache is whole, the next run fills it")
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        settings(max_steps=1, precompute_ref_log_probs="true")
        with FullDisk(5_000):
            code, said = run(["train", "config.yaml"])
        assert code == 1, said
        assert run(["train", "config.yaml"])[0] == 0
        return "nothing", said


@fault("out of memory in a step", "stopped, with the batch and what makes it smaller")
def _(folders: Folders) -> tuple[str, str]:
    return stopped_by(folders, "layers[1].mlp.register_forward_pre_hook(lambda *_: torch.empty(2**50) and None)")


@fault("a log-prob that is NaN", "stopped before the weights changed, with the rows; checkpoint saved")
def _(folders: Folders) -> tuple[str, str]:
    return stopped_by(folders, "norm.register_forward_hook(lambda m, a, out: out * float('nan'))")


@fault("a gradient that overflows", "stopped before the weights changed; checkpoint saved")
def _(folders: Folders) -> tuple[str, str]:
    return stopped_by(folders, "norm.weight.register_hook(lambda grad: grad * float('inf'))")


def stopped_by(folders: Folders, hook: str) -> tuple[str, str]:
    """The command line with a hook on the policy that acts from step 2 on."""
    import torch

    from fastkto.training import KTOTrainer

    stock = KTOTrainer.training_step

    def training_step(self: KTOTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 1 and not hasattr(self, "spoiled"):
            self.spoiled = eval(f"model.{hook}", {"model": self.model.model, "torch": torch})
        return stock(self, *args, **kwargs)

    with working_folder(folders.source):
        settings(max_steps=3)
        KTOTrainer.training_step = training_step  # type: ignore[method-assign]
        try:
            code, said = run(["train", "config.yaml"])
        finally:
            KTOTrainer.training_step = stock  # type: ignore[method-assign]
        assert code == 1, said
        assert Path("out/checkpoint-1").is_dir()
        settings(max_steps=3, resume_from_checkpoint="true")
        assert run(["train", "config.yaml"])[0] == 0
        return "nothing", said


@fault("a cache that was made for another model", "its values are left alone and named, new ones computed")
def _(folders: Folders) -> tuple[str, str]:
    from tiny import tiny_llama

    with working_folder(folders.source):
        tiny_llama(seed=5).save_pretrained("model")
        return other_cache()


@fault("a cache that was made with another chat template", "its values are left alone and named, new ones computed")
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        Path("chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        return other_cache("--chat_template", "chat.jinja")


def other_cache(*flags: str) -> tuple[str, str]:
    import logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    settings(precompute_ref_log_probs="true", ref_cache_dir="earlier", max_steps=1)
    logger = logging.getLogger("fastkto.step.logp_cache")
    logger.addHandler(handler)
    stock = logging.disable
    try:
        logging.disable = lambda level=0: None  # type: ignore[assignment]
        assert run(["train", "config.yaml", *flags])[0] == 0
    finally:
        logging.disable = stock  # type: ignore[assignment]
        logger.removeHandler(handler)
    (message,) = [text for text in said if "was made with another" in text]
    return "nothing", message


@fault("two runs on one cache at once", "both end, and a third computes nothing", slow=True)
def _(folders: Folders) -> tuple[str, str]:
    with working_folder(folders.source):
        settings(precompute_ref_log_probs="true", ref_cache_dir="cache", max_steps=1)
        both = [start("train", "config.yaml", "--output_dir", f"out{i}") for i in range(2)]
        said = [child.communicate(timeout=120)[1] for child in both]
        assert [child.returncode for child in both] == [0, 0], "\n".join(said)[-3000:]
        third = start("train", "config.yaml", "--output_dir", "out3")
        text = third.communicate(timeout=120)[1]
        assert third.returncode == 0
        return "nothing", last(text, "0 computed")


@fault("one of two processes is killed in a step", "the launcher ends the other and names the signal", slow=True)
def _(folders: Folders) -> tuple[str, str]:
    began = time.monotonic()
    code, said = ranks.launch(2, folders.new("ranks"), engine="dies", timeout=120)
    assert code != 0, said[-2000:]
    assert time.monotonic() - began < 90, "it took too long"
    return "nothing", last(said, "is gone" if "is gone" in said else "SIGKILL")


def start(*argv: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastkto", *argv]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def wait_for(happened: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert child.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "it does not begin"
        time.sleep(0.05)


def last(said: str, words: str) -> str:
    return next(line for line in reversed(said.splitlines()) if words in line)
