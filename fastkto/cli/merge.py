"""`fastkto merge`: a LoRA adapter and its base model as one model that stock transformers loads."""

from collections.abc import Sequence
from pathlib import Path

from fastkto.cli.options.strict import StrictParser
from fastkto.errors import InputError, escaped
from fastkto.tools.merge import ALLOWED_NATS, merge

DESCRIPTION = """Add a LoRA adapter to the weights of its base model and save the sum with tokenizer, chat template and
generation config. The saved model's log-probs are compared with the adapter's first; the output appears whole or not
at all."""


def run(argv: Sequence[str]) -> int:
    """Merge, check, save."""
    parser = StrictParser(prog="fastkto merge", description=DESCRIPTION)
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="folder with adapter_config.json")
    parser.add_argument("--output_dir", "--output-dir", required=True, help="folder to write")
    parser.add_argument("--model", help="folder or Hub id of the base model; unset: the one the adapter names")
    parser.add_argument("--dtype", choices=list(ALLOWED_NATS), default="float32", help="dtype of the saved weights")
    parser.add_argument("--trust_remote_code", "--trust-remote-code", action="store_true", help="run the model's code")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    arguments = parser.parse_all(argv)
    adapter, output = (Path(path).expanduser() for path in (arguments.adapter, arguments.output_dir))
    if not (adapter / "adapter_config.json").is_file():
        fix = "Name the output or a checkpoint of a training run with use_peft."
        raise InputError("ADAPTER_DIR", str(adapter), "a folder with adapter_config.json", fix)
    difference = merge(
        adapter,
        output,
        base=arguments.model,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        overwrite=arguments.overwrite,
    )
    print(f"{escaped(str(output))}: base and adapter in one, {arguments.dtype}.")
    print(f"log-probs of a test sentence: {difference:.1e} nats per token away from the adapter's at most")
    return 0
