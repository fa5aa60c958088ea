"""The commands that talk to a trained model, or serve it: fastkto, vLLM, llama.cpp, Ollama."""

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank; 16 is its default."""


class Use(NamedTuple):
    """One way to use a model."""

    program: str
    commands: str
    """Lines for a shell."""
    note: str = ""


def uses(
    folder: str,
    *,
    base: str | None = None,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    template: bool = True,
    template_file: str | None = None,
    modelfile: str = "",
) -> list[Use]:
    """Every way to use the model in `folder`, the simplest first.

    Args:
        folder: what the training wrote, the adapter or the whole model.
        base: of an adapter, the folder or id of the model that it is on.
        adapters: the configurations of the adapter by name, as peft has them; empty for a whole model.
        template: whether the training went through the tokenizer's chat template.
        template_file: the file in `folder` that holds it, where it is one of its own.
        modelfile: what Ollama's Modelfile says below its first line.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(folder).resolve().name).strip("-.") or "trained"
    whole, merge = folder, ""
    if adapters:
        held = next(iter(adapters))
        folder = folder if held == "default" else str(Path(folder) / held)
        whole = f"{whole.rstrip('/') or '.'}-merged" if Path(whole).name else "merged"
        merge = f"fastkto merge {quote(folder)} --output_dir {quote(whole)}\n"
    plain = "" if template else "It was trained without a chat template: prompts go to /v1/completions as they are."
    serve, note = f"{merge}vllm serve {quote(whole)}", plain
    if adapters and len(adapters) == 1 and (rank := _rank(*adapters.values())) is not None:
        own = f" --chat-template {quote(template_file)}" if template_file else ""
        most = f" --max-lora-rank {rank}" if rank > 16 else ""
        modules = quote(f"{name}={folder}")
        serve = f"vllm serve {quote(base or 'BASE')} --enable-lora --lora-modules {modules}{most}{own}"
        note = f"The model to ask for is `{name}`. {plain}".strip()
    file, tag = f"{name}.gguf", name.lower()
    convert = f"python llama.cpp/convert_hf_to_gguf.py {quote(whole)} --outfile {file}"
    talk = f"llama-cli -m {file} --jinja" if template else f"llama-server -m {file}"
    lines = [f"cat > Modelfile <<'END'\nFROM ./{file}", modelfile.strip("\n"), "END"]
    create = "\n".join([line for line in lines if line] + [f"ollama create {tag} -f Modelfile", f"ollama run {tag}"])
    return [
        Use("fastkto", f"fastkto chat {quote(folder)}", "The base answers beside it."),
        Use("vLLM", serve, note),
        Use("llama.cpp", f"{merge}{convert}\n{talk}", "The file holds the chat template." if template else plain),
        Use("Ollama", create, f"With the file `{file}` from above."),
    ]


def _rank(config: Mapping[str, Any]) -> int | None:
    """The rank that vLLM has to make room for; None for an adapter that it does not load."""
    refused = ("modules_to_save", "use_dora", "trainable_token_indices", "target_parameters", "lora_bias")
    if str(config.get("peft_type")).rpartition(".")[2] != "LORA" or any(config.get(name) for name in refused):
        return None
    if config.get("bias", "none") != "none" or config.get("rank_pattern") or config.get("alpha_pattern"):
        return None
    return next((rank for rank in RANKS if rank >= int(config["r"])), None)
