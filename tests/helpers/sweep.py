"""`make families`: every causal-LM family of the installed transformers, tiny and random: which way its rows run, and
how far log-probs and gradients are from those of the stock model, a row at a time. `--results FOLDER` keeps it."""

import argparse
import contextlib
import copy
import functools
import json
import platform
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from packed_steps import rows, step, step_alone
from sweep_models import LEFT_OUT, tiny_model
from tiny_trainer import config, logp
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fastkto.errors import InputError
from fastkto.training.batching import choose_collator
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import teach_scorer

DATA = rows([(5, 9), (1, 1), (14, 3), (2, 30), (3, 1), (20, 22)], vocabulary=60)
SECONDS, LIMIT = 180, 1e-3


@contextlib.contextmanager
def limit(seconds):
    """A TimeoutError after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_family(name):
    """Which way a family runs, how far from stock, or why not."""
    if name in LEFT_OUT:
        return {"way": "left out", "why": LEFT_OUT[name]}
    said = {}
    try:
        with limit(SECONDS), tempfile.TemporaryDirectory() as folder:
            try:
                model = tiny_model(name)
                with torch.no_grad():
                    model(torch.tensor([[3, 4, 5]]), use_cache=False)
            except Exception as error:  # whatever a family makes of a small config
                return {"way": "not built, failed", "why": f"{type(error).__name__}: {error}"[:200]}
            untouched = copy.deepcopy(model)
            try:
                teach_scorer(model)
                args = config(Path(folder), bf16=False)
                collator = choose_collator(ModelRun(model), DATA, args, pad_token_id=0)
            except InputError as error:
                return {"way": "refused", "why": str(error)[:200]}
            alone = getattr(collator, "one_by_one", None)
            said["way"] = {None: "packed", False: "padded", True: "row by row"}[alone]
            ours = step(model, collator(DATA))
            stock = step_alone(untouched, DATA, None, logp=functools.partial(logp, untouched))
            said["nats"] = max(
                (getattr(ours[0], f) - getattr(stock[0], f)).abs().max().item() for f in ("rewards", "kl")
            )
            said["nats"] /= 0.3  # beta: rewards are beta times log-probs
            scale = max(g.abs().max().item() for g in stock[2].values())
            gap = max((ours[2][n] - g).abs().max().item() for n, g in stock[2].items())
            said["gradients"] = gap / scale
            if max(said["nats"], said["gradients"]) > LIMIT:
                said["way"] += ", unlike"
    except Exception as error:  # a row of the table, not its end
        said |= {"way": said.get("way", "failed") + ", failed", "why": f"{type(error).__name__}: {error}"[:200]}
    return said


def main():
    parser = argparse.ArgumentParser("sweep", description=__doc__)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    parser.add_argument("names", nargs="*", metavar="FAMILY")
    options = parser.parse_args()
    table = {}
    transformers.logging.set_verbosity_error()
    for name in options.names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found = table[name] = try_family(name)
        figures = " ".join(f"{found[key]:9.2e}" if key in found else " " * 9 for key in ("nats", "gradients"))
        print(f"{name:<28} {found['way']:<12} {figures}  {found.get('why', '')[:110]}", flush=True)
    counts = {way: sum(found["way"] == way for found in table.values()) for way in {x["way"] for x in table.values()}}
    print(", ".join(f"{count} {way}" for way, count in sorted(counts.items(), key=lambda x: -x[1])))
    if options.results:
        today = datetime.now(UTC).date().isoformat()
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        about = {"date": today, **versions, "transformers": transformers.__version__, "counts": counts}
        path = options.results / f"families_{today}.json"
        path.write_text(json.dumps(about | {"families": table}, indent=1) + "\n")
    return int(any(found["way"].endswith(("failed", "unlike")) for found in table.values()))


if __name__ == "__main__":
    sys.exit(main())
