"""`fastkto chat`: the trained model answers, its base beside it, through the template of the training."""

import io
import json
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from fastkto.cli import main
from fastkto.errors import InputError
from fastkto.tools.chat.finding import find
from fastkto.tools.chat.talking import safe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and what two short trainings left: all weights and an adapter, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_llama().save_pretrained("base")
        tiny_tokenizer().save_pretrained("base")
        rows = [
            {
                "prompt": [{"role": "user", "content": f"q {i}"}],
                "completion": [{"role": "assistant", "content": f"a {i}"}],
                "label": i % 3 > 0,
            }
            for i in range(12)
        ]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = [
            "--model_name_or_path",
            "base",
            "--dataset_name",
            "rows.jsonl",
            "--max_steps",
            "2",
            "--save_steps",
            "1",
        ]
        flags += ["--learning_rate", "1e-2", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]
        assert main(["train", *flags, "--output_dir", "full"]) == 0
        assert main(["train", *flags, "--output_dir", "lora", "--use_peft", "--lora_target_modules", "all-linear"]) == 0
    return folder


@pytest.fixture
def workplace(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for settings in Path().glob("*/run.yaml"):
        settings.write_text(settings.read_text().replace(str(runs), str(Path.cwd())))
    return Path.cwd()


def chat(monkeypatch, capsys, text, *argv):
    """What a pipe into `fastkto chat` gives: exit code, answers by name, stderr."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    capsys.readouterr()
    code = main(["chat", *argv, "--max_new_tokens", "8"])
    out, err = capsys.readouterr()
    answers = {}
    for line in out.splitlines():
        name, _, answer = line.partition(": ")
        if name in ("trained", "base"):
            answers.setdefault(name, []).append(answer)
    return code, answers, out, err


def greedy(path, prompt="hello", adapter=None):
    """The tokens of the model's likeliest answer, one after another, as text."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), tiny_tokenizer()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = tokenizer(f"<|user|>{prompt}<|end|>\n<|assistant|>", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    start = ids.shape[1]
    with torch.no_grad():
        while ids.shape[1] < start + 8 and ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
    return safe(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("out", "adapter"),
    [("full", None), ("full/checkpoint-1", None), ("lora", "lora"), ("lora/checkpoint-1", "lora/checkpoint-1")],
)
def test_the_trained_model_and_its_base_answer(workplace, monkeypatch, capsys, out, adapter):
    code, _, printed, _ = chat(monkeypatch, capsys, "hello\n", out)
    trained = greedy("base" if adapter else out, adapter=adapter)
    assert code == 0
    assert trained != greedy("base")
    assert printed == f"> hello\ntrained: {trained}\nbase: {greedy('base')}\n\n"


def test_every_line_of_a_pipe_is_a_prompt_of_its_own(workplace, monkeypatch, capsys):
    code, _, printed, _ = chat(monkeypatch, capsys, "what\n\nhello\n", "full", "--alone")
    assert code == 0
    assert printed.endswith(f"> hello\ntrained: {greedy('full')}\n\n")
    assert printed.count("trained: ") == 2
    assert "base: " not in printed


def test_the_base_that_is_asked_for(workplace, monkeypatch, capsys):
    tiny_llama(seed=5).save_pretrained("other")
    tiny_tokenizer().save_pretrained("other")
    for out in ("full", "lora"):
        assert f"base: {greedy('other')}\n" in chat(monkeypatch, capsys, "hello\n", out, "--with", "other")[2]
        assert f"base: {greedy('base')}\n" in chat(monkeypatch, capsys, "hello\n", out, "--with", "base")[2]


def test_a_base_that_is_gone_is_said_and_one_asked_for_is_an_error(workplace, monkeypatch, capsys):
    shutil.move("base", "moved")
    code, answers, _, err = chat(monkeypatch, capsys, "hello\n", "full")
    assert (code, [*answers]) == (0, ["trained"])
    assert "answers alone; --with names another" in err
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "full", "--with", "./base")
    assert code == 1
    assert "with: got './base'" in err
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "lora", "--model", "./base")
    assert code == 1
    assert "Name the adapter's base with --model" in err
    code, answers, _, _ = chat(monkeypatch, capsys, "hello\n", "lora", "--model", "moved")
    assert (code, [*answers]) == (0, ["trained", "base"])


def test_a_full_model_that_nothing_names_the_base_of_answers_alone(workplace, monkeypatch, capsys):
    Path("full/run.yaml").unlink()
    Path("full/README.md").unlink()
    code, answers, _, err = chat(monkeypatch, capsys, "hello\n", "full")
    assert (code, [*answers]) == (0, ["trained"])
    assert "--with BASE" in err


def test_a_run_that_has_not_ended_answers_from_its_newest_whole_checkpoint(workplace, monkeypatch, capsys):
    for path in (*Path("full").glob("*.safetensors"), *Path("full").glob("config.json")):
        path.unlink()
    assert find("full").folder.name == "checkpoint-2"
    Path("full/checkpoint-2/trainer_state.json").unlink()
    code, answers, _, err = chat(monkeypatch, capsys, "hello\n", "full", "--alone")
    assert (code, [*answers]) == (0, ["trained"])
    assert "newest whole checkpoint, checkpoint-1" in err
    Path("full/checkpoint-1/trainer_state.json").unlink()
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "full")
    assert code == 1
    assert "checkpoint-2 is torn" in err


def test_from_another_folder_the_base_is_found(workplace, monkeypatch, capsys):
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for out in ("../lora", "../full", "../lora/checkpoint-2"):
        assert [*chat(monkeypatch, capsys, "hello\n", out)[1]] == ["trained", "base"]


def test_an_adapter_of_another_name_is_found_in_its_run(workplace):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        Path("lora/mine").mkdir(exist_ok=True)
        shutil.move(f"lora/{name}", f"lora/mine/{name}")
    shutil.rmtree("lora/checkpoint-1")
    shutil.rmtree("lora/checkpoint-2")
    assert find("lora").folder == Path("lora/mine")
    Path("lora/run.json").unlink()
    with pytest.raises(InputError, match="a folder with a model"):
        find("lora")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("nowhere",), 1, "'nowhere', expected a folder that exists"),
        (("empty",), 1, "'empty', expected a folder with a model"),
        (("full", "--temperature", "hot"), 2, "'hot' is not a number from 0 to 100"),
        (("full", "--max_new_tokens", "0"), 2, "'0' is not a whole number"),
        (("full", "--plain", "--system", "Be kind."), 1, "system: got 'Be kind.'"),
        (("full", "--wiht", "base"), 2, "'--with'"),
        ((), 2, "OUT"),
    ],
)
def test_what_cannot_be_used_is_one_line(workplace, monkeypatch, capsys, argv, code, words):
    Path("empty").mkdir()
    found, _, out, err = chat(monkeypatch, capsys, "hello\n", *argv)
    assert (found, out) == (code, "")
    assert words in err
    assert [line for line in err.splitlines() if line.startswith("fastkto chat: ")]
    assert "Traceback" not in err


def test_an_adapter_of_another_model_is_refused(workplace, monkeypatch, capsys):
    tiny_llama(hidden=64).save_pretrained("wider")
    tiny_tokenizer().save_pretrained("wider")
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "lora", "--model", "wider")
    assert code == 1
    assert "an adapter that fits its base model" in err
    config = json.loads(Path("lora/adapter_config.json").read_text())
    Path("lora/adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "lm_head"]}))
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "lora")
    assert code == 1
    assert "missing adapter keys" in err


def test_a_run_on_plain_text_says_so_itself(workplace, monkeypatch, capsys):
    rows = [{"prompt": f"q {i} ", "completion": f"a {i}", "label": i % 2 == 0} for i in range(8)]
    Path("plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", "base", "--dataset_name", "plain.jsonl", "--max_steps", "1", "--use_cpu"]
    assert main(["train", *flags, "--output_dir", "plain"]) == 0
    assert 'TEMPLATE """{{ .Prompt }}"""' in Path("plain/README.md").read_text()
    code, _, _, err = chat(monkeypatch, capsys, "hello\n", "plain", "--system", "Be kind.")
    assert code == 1
    assert "past the chat template" in err
    assert find("plain").plain
    assert not find("full").plain
    plain = chat(monkeypatch, capsys, "hello\n", "plain")[1]
    Path("plain/run.json").unlink()
    assert chat(monkeypatch, capsys, "hello\n", "plain")[1] != plain
    assert chat(monkeypatch, capsys, "hello\n", "plain", "--plain")[1] == plain


def test_ctrl_c_and_ctrl_d_end_it_politely(workplace, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for ending in (EOFError, KeyboardInterrupt):
        given = iter(["hello"])

        def ask(_, given=given, ending=ending):
            for text in given:
                return text
            raise ending

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", ask)
        assert main(["chat", "full", "--alone", "--max_new_tokens", "4"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("Talking to full. Write a prompt. /reset starts over, Ctrl-D ends.\n")
        assert "trained: " in out
        assert "Traceback" not in err
