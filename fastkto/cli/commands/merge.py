"""`fastkto merge`: an adapter and its base model as one model that stock transformers loads."""

from collections.abc import Sequence
from pathlib import Path

from fastkto.cli.options.strict import StrictParser
from fastkto.errors import escaped

DESCRIPTION = """Add an adapter to the weights of its base model and save the sum with tokenizer, chat template and
generation config. Every tensor of both is accounted for, and the saved model's log-probs are compared with the
adapter's; the output appears whole or not at all."""
DTYPES = ("float32", "bfloat16", "float16")
NOTHING = 1e-5
"""Nats: what the order of additions alone can do in float32."""


def run(argv: Sequence[str]) -> int:
    """Merge, check, save."""
    arguments = parser().parse_all(argv)

    from fastkto.tools.merge.base import first_few
    from fastkto.tools.merge.merging import merge

    adapter, output = (Path(path).expanduser() for path in (arguments.adapter, arguments.output_dir))
    merged = merge(
        adapter,
        output,
        base=arguments.model,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        overwrite=arguments.overwrite,
    )
    where = escaped(str(output))
    print(f"{where}: base and {merged.adapter} in one, {' and '.join(merged.dtypes)}, tokenizer of {merged.tokenizer}.")
    if merged.left_out:
        print(f"Not in it, for transformers does not load them from the base: {first_few(merged.left_out)}.")
    print(
        f"log-probs of {merged.tokens} tokens, read back: at most {merged.gap:.1e} nats per token away from base and "
        f"adapter's ({merged.allowed:g} allowed)."
    )
    if merged.effect is not None:
        print(_effect(merged.effect, merged.gap))
    return 0


def parser() -> StrictParser:
    """The options."""
    found = StrictParser(command="merge", description=DESCRIPTION)
    found.add_argument("adapter", metavar="ADAPTER_DIR", help="folder with adapter_config.json")
    found.add_argument("--output_dir", "--output-dir", required=True, help="folder to write")
    found.add_argument("--model", help="folder or Hub id of the base model; unset: the one the adapter names")
    found.add_argument("--dtype", choices=DTYPES, help="dtype of all saved weights, unset: of each the base's")
    found.add_argument("--trust_remote_code", "--trust-remote-code", action="store_true", help="run the model's code")
    found.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    return found


def _effect(effect: float, gap: float) -> str:
    """What the adapter does to the base, beside what merging did to the adapter."""
    if effect <= NOTHING:
        return "The adapter changes nothing: base and adapter give what the base gives."
    moved = f"The adapter moves them by up to {effect:.1e}"
    if gap <= effect / 2:
        return f"{moved}."
    return f"{moved}, and rounding loses most of that: --dtype float32 keeps it."
