"""The commands of the model card, as vLLM, llama.cpp and Ollama take them, with the template of the training."""

import json
import shlex
from pathlib import Path

import pytest
from jinja2 import Environment, TemplateError
from tiny import tiny_llama, tiny_tokenizer

from fastkto.cli import main
from fastkto.training.output.card.ollama import PLAIN, UNKNOWN, modelfile, pieces_of
from fastkto.training.output.card.serving import uses

LORA = {"default": {"peft_type": "LORA", "r": 16, "bias": "none"}}


def commands(*given, **more):
    return {use.program: use.commands.splitlines() for use in uses(*given, **more)}


def test_a_whole_model():
    found = commands("out", modelfile=PLAIN)
    assert found["fastkto"] == ["fastkto chat out"]
    assert found["vLLM"] == ["vllm serve out"]
    assert found["llama.cpp"] == [
        "python llama.cpp/convert_hf_to_gguf.py out --outfile out.gguf",
        "llama-cli -m out.gguf --jinja",
    ]
    assert found["Ollama"] == [
        "cat > Modelfile <<'END'",
        "FROM ./out.gguf",
        PLAIN,
        "END",
        "ollama create out -f Modelfile",
        "ollama run out",
    ]


def test_an_adapter_is_served_on_its_base_and_merged_for_the_others():
    more = {"base": "org/base", "adapters": LORA, "template_file": "out/chat_template.jinja"}
    found = commands("out", **more)
    assert found["vLLM"] == [
        "vllm serve org/base --enable-lora --lora-modules out=out --chat-template out/chat_template.jinja"
    ]
    assert found["llama.cpp"][:2] == [
        "fastkto merge out --output_dir out-merged",
        "python llama.cpp/convert_hf_to_gguf.py out-merged --outfile out.gguf",
    ]


@pytest.mark.parametrize(("r", "asked"), [(4, None), (16, None), (17, "32"), (64, "64"), (400, "512")])
def test_vllm_is_told_of_a_rank_above_its_own(r, asked):
    [line] = commands("out", base="b", adapters={"default": {**LORA["default"], "r": r}})["vLLM"]
    words = shlex.split(line)
    assert (words[words.index("--max-lora-rank") + 1] if "--max-lora-rank" in words else None) == asked


@pytest.mark.parametrize(
    "what",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "LOHA"},
        {"r": 1024},
        {"rank_pattern": {"q_proj": 8}},
    ],
)
def test_what_vllm_does_not_load_as_an_adapter_is_merged(what):
    found = commands("out", base="b", adapters={"default": LORA["default"] | what})["vLLM"]
    assert found == ["fastkto merge out --output_dir out-merged", "vllm serve out-merged"]


def test_paths_with_spaces_and_quotes_stay_one_word():
    folder = "my runs/it's out"
    found = commands(folder, base="my models/base", adapters=LORA, template_file=f"{folder}/chat_template.jinja")
    assert shlex.split(found["fastkto"][0]) == ["fastkto", "chat", folder]
    assert shlex.split(found["vLLM"][0]) == [
        *("vllm", "serve", "my models/base", "--enable-lora", "--lora-modules", f"it-s-out={folder}"),
        *("--chat-template", f"{folder}/chat_template.jinja"),
    ]
    assert shlex.split(found["llama.cpp"][0]) == ["fastkto", "merge", folder, "--output_dir", f"{folder}-merged"]
    assert found["Ollama"][1] == "FROM ./it-s-out.gguf"


def test_an_adapter_of_another_name_lies_in_a_folder_of_its_own():
    found = commands("out", base="b", adapters={"mine": LORA["default"]})
    assert found["fastkto"] == ["fastkto chat out/mine"]
    assert found["vLLM"] == ["vllm serve b --enable-lora --lora-modules out=out/mine"]


def test_without_a_template_prompts_go_as_they_are():
    found = {use.program: use for use in uses("out", template=False)}
    assert "/v1/completions" in found["vLLM"].note
    assert found["llama.cpp"].commands.splitlines()[-1] == "llama-server -m out.gguf"
    assert modelfile(tiny_tokenizer(chat=False)) == PLAIN


def test_ollamas_template_is_the_tokenizers():
    assert modelfile(tiny_tokenizer()).splitlines() == [
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>',
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>',
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>',
        '{{ end }}{{ end }}<|assistant|>"""',
        'PARAMETER stop "<|end|>"',
    ]


def rendering(template):
    def refuse(message):
        raise TemplateError(message)

    compiled = Environment().from_string(template)
    return lambda messages, add_generation_prompt=False: compiled.render(
        messages=messages, add_generation_prompt=add_generation_prompt, raise_exception=refuse
    )


TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def test_a_default_system_prompt_is_found():
    start = "{% if messages[0].role != 'system' %}[system]Be kind.[/]{% endif %}"
    pieces = pieces_of(rendering(start + TURNS))
    assert pieces.default_system == "Be kind."
    assert pieces.system == ("[system]", "[/]")
    assert pieces.head == ""


def test_the_first_token_is_left_to_ollama():
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert modelfile(tokenizer).startswith('TEMPLATE """{{ range .Messages }}')


def test_a_template_that_refuses_a_system_prompt_has_none():
    pieces = pieces_of(rendering("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS))
    assert pieces.system is None
    assert pieces.user == ("[user]", "[/]")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_more_is_not_guessed(template):
    assert pieces_of(rendering(template)) is None
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert modelfile(tokenizer) == UNKNOWN


def test_the_card_has_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("base model")
    tiny_tokenizer().save_pretrained("base model")
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i % 2 == 0} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", "base model", "--dataset_name", "rows.jsonl", "--use_peft", "--max_steps", "1"]
    assert (
        main(["train", *flags, "--output_dir", "my out", "--chat", "true", "--use_cpu", "--disable_tqdm", "true"]) == 0
    )
    card = Path("my out/README.md").read_text()
    use = card.partition("## Use it")[2].partition("## Data")[0]
    assert "fastkto chat 'my out'\n" in use
    assert (
        "vllm serve 'base model' --enable-lora --lora-modules 'my-out=my out' "
        "--chat-template 'my out/chat_template.jinja'\n"
    ) in use
    assert "fastkto merge 'my out' --output_dir 'my out-merged'\n" in use
    assert '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>\n' in use
