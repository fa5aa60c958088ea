"""What bash, zsh and fish complete."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

from fastkto.cli import COMMANDS, main
from fastkto.cli.help.declared import options_of_training

needs = {name: pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name}") for name in ("bash", "zsh", "fish")}


@pytest.fixture
def script(capsys, tmp_path):
    """The file with what `fastkto completion` prints for a shell."""

    def of(shell):
        assert main(["completion", shell]) == 0
        file = tmp_path / f"fastkto.{shell}"
        file.write_text(capsys.readouterr().out)
        return file

    return of


@pytest.mark.parametrize("shell", [pytest.param(name, marks=mark) for name, mark in needs.items()])
def test_the_script_parses(shell, script):
    done = subprocess.run([shell, "-n", script(shell)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_in_the_script(shell, script):
    text = script(shell).read_text()
    for name in [*COMMANDS, *options_of_training()]:
        assert name in text, name
    assert "help-all" in text
    assert "dataset-name" not in text, "one spelling is offered"


@needs["bash"]
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["xyz"], []),
        (["train", "--bet"], ["--beta"]),
        (["train", "config.yaml", "--per_device_tr"], ["--per_device_train_batch_size"]),
        (["train", "--beta", "0.1", "--help-"], ["--help-all"]),
        (["plan", "--mem"], ["--memory"]),
        (["merge", "--out"], ["--output_dir"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["report", "--b"], []),
    ],
    ids=lambda words: " ".join(words),
)
def test_bash_completes(words, expected, script):
    typed = " ".join(f"'{word}'" for word in ["fastkto", *words])
    ask = f'. "$1"; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _fastkto; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", ask, "bash", script("bash")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert done.stderr == ""


@needs["bash"]
def test_files_and_folders_are_completed_where_no_word_fits(script, tmp_path):
    file = script("bash")
    (tmp_path / "my config.yaml").touch()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    lines = ["PS1=", f". '{file}'", "fastkto() { printf '<%s>' \"$@\"; }"]
    lines += ["fastkto train my\t", "fastkto report ru\tfi\t", "fastkto tr\t--bet\t0.2", "exit"]
    assert "<train><my config.yaml>" in (shown := typed_into_bash(lines, tmp_path)), shown
    assert "<report><runs/first/>" in shown
    assert "<train><--beta><0.2>" in shown


def typed_into_bash(lines, folder):
    """What an interactive bash shows that is typed into."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(
            "bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | {"TERM": "dumb", "INPUTRC": os.devnull}
        )
    shown, end = b"", time.monotonic() + 20
    os.write(terminal, "".join(f"{line}\n" for line in lines).encode())
    while time.monotonic() < end and select.select([terminal], [], [], 20)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the shell has left
            break
    os.waitpid(child, 0)
    os.close(terminal)
    return shown.decode()


@needs["fish"]
@pytest.mark.parametrize(("typed", "expected"), [("tr", "train"), ("train --bet", "--beta"), ("completion z", "zsh")])
def test_fish_completes(typed, expected, script):
    ask = f"source {script('fish')}; complete -C 'fastkto {typed}'"
    done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [expected]
