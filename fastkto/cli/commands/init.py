"""`fastkto init`: a file of feedback and a model to a commented YAML that trains."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from shlex import join
from typing import Any, get_args, get_origin, get_type_hints

from fastkto.cli.commands.plan import size
from fastkto.cli.options.strict import StrictParser
from fastkto.errors import escaped
from fastkto.rows import RowOptions

DESCRIPTION = """Look at the rows, the model's config and the memory that there is, and write the settings of a first
training, each with the number that it rests on: all weights or LoRA, batch, length, rate, weights of the classes, and a
part of the prompts to evaluate on. No weights are read and nothing is trained."""
ALSO = ("dataset_config", "dataset_train_split", "chat_template")
"""Of a training's fields about the data, those that are handed on beside `RowOptions`."""


def run(argv: Sequence[str]) -> int:
    """Look, decide, write, and print the next command."""
    options_of = parser()
    given = options_of.parse_all(argv)

    import torch

    from fastkto.cli.commands.plan import model_of
    from fastkto.cli.options.arguments import ModelArguments
    from fastkto.cli.options.models import load_tokenizer
    from fastkto.config import KTOConfig
    from fastkto.rows import read_rows
    from fastkto.tools.init.fitting import fit
    from fastkto.tools.init.looking import look
    from fastkto.tools.init.memory import Memory, in_words, memory_here
    from fastkto.tools.init.settings import OF_LORA, settings
    from fastkto.tools.init.writing import as_yaml, check_free, write_whole
    from fastkto.tools.plan import Search, process_bytes
    from fastkto.training.loading import model_source

    output = Path(given.output).expanduser()
    check_free(output, overwrite=given.overwrite)
    gpus = torch.cuda.device_count()
    trust = given.trust_remote_code
    config = KTOConfig(bf16=None if gpus else False, gradient_accumulation_steps=2, trust_remote_code=trust)
    memory = memory_here(config.device) if given.memory is None else Memory(given.memory, "that --memory names")
    name = model_source(given.model, "model")
    full = Search(model_of(ModelArguments(name), config), config, ddp=gpus > 1)
    tokenizer = load_tokenizer(name, given.chat_template, trust_remote_code=trust)
    options = {field.name: getattr(given, field.name) for field in fields(RowOptions)}
    dataset = read_rows(given.file, name=given.dataset_config, split=given.dataset_train_split)
    rows = look(dataset, tokenizer, RowOptions(**options), seed=config.seed, source=given.file)
    print(
        f"rows    {rows.number}: {rows.desirable} thumbs up, {rows.undesirable} thumbs down; {rows.prompts} prompts; "
        f"{rows.longest(0.5)} tokens in the median, {rows.lengths[-1]} at most"
    )
    if not rows.held_out:
        print("split   none: too few prompts to hold some of them out")
    print(f"memory  {memory}; looking what fits", flush=True)
    dtype = "bfloat16" if config.bf16 else "float32"

    def adapter() -> Search:
        arguments = ModelArguments(name, use_peft=True, dtype=dtype, **OF_LORA)
        return Search(model_of(arguments, config), config, ddp=gpus > 1)

    found = fit(full, adapter, rows, memory, process_bytes(config.device))
    named = {name: getattr(given, name) for name in (*options, *ALSO, "trust_remote_code")}
    changed = {name: value for name, value in named.items() if value != options_of.get_default(name)}
    lines = settings(given.file, given.model, changed, rows, found, memory, dtype=dtype, processes=max(1, gpus))
    what = "LoRA" if found.use_peft else "all weights"
    print(f"plan    {what}, {found.rows} rows of up to {found.max_length} tokens: {in_words(found.needs)} a step")
    write_whole(output, as_yaml(join(["fastkto", "init", *argv]), lines))
    print(escaped(f"{output} is written, each line with its reason. Next: {join(['fastkto', 'train', str(output)])}"))
    return 0


def parser() -> StrictParser:
    """Every option by name, with its help."""
    found = StrictParser(command="init", description=DESCRIPTION)
    found.add_argument("file", metavar="FILE", help="data file, folder or Hub id")
    found.add_argument("--model", required=True, default=argparse.SUPPRESS, help="folder or Hub id of the model")
    found.add_argument("--memory", type=size, help="e.g. 24GiB; unset: the GPU's, else what is free on this machine")
    found.add_argument("--output", default="config.yaml", help="file to write")
    found.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    found.add_argument("--chat_template", "--chat-template", help="Jinja file, or chatml for a base model")
    found.add_argument("--dataset_config", "--dataset-config", help="configuration of a Hub dataset")
    found.add_argument("--dataset_train_split", "--dataset-train-split", default="train", help="split to train on")
    found.add_argument("--trust_remote_code", "--trust-remote-code", action="store_true", help="run the model's code")
    hints = get_type_hints(RowOptions)
    for field in fields(RowOptions):
        flags = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        of_flag: dict[str, Any] = {"type": _kind(hints[field.name]), "default": field.default}
        if hints[field.name] is bool:
            of_flag |= {"nargs": "?", "const": True}
        elif any(get_origin(part) is list for part in get_args(hints[field.name])):
            of_flag |= {"nargs": "+"}
        found.add_argument(*flags, **of_flag, **field.metadata)
    return found


def _kind(hint: Any) -> Any:
    """What turns the text of a flag into a value of a field, or into one of its list."""
    if hint is bool:
        return _boolean
    inner = {part for whole in (get_args(hint) or (hint,)) for part in (get_args(whole) or (whole,))}
    return float if float in inner else str


def _boolean(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]
