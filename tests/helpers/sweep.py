"""`make families`: every causal-LM family of the installed transformers, tiny and random: which way its rows run, and
how far log-probs and gradients are from those of the stock model, a row at a time. `--results FOLDER` keeps it."""

import argparse
import contextlib
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
from tiny_trainer import config
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fastkto.errors import InputError
from fastkto.training.batching import choose_collator
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import teach_scorer

DATA = rows([(5, 9), (1, 1), (14, 3), (2, 30), (3, 1), (20, 22)], vocabulary=60)
SECONDS, PARAMETERS, LIMIT = 60, 20_000_000, 1e-3
SIZES = {
    64: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions n_ctx max_seq_len seq_length",
    32: "hidden_size n_embd d_model embed_dim dim emb_dim word_embed_proj_dim embedding_size attention_hidden_size"
    " lru_width",
    48: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff dff"
    " intermediate_size_mlp",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size",
    16: "q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim index_head_dim",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim state_size"
    " mamba_d_state ssm_state_size sliding_window index_topk dim_head hidden_size_per_layer_input swa_head_dim"
    " rotary_dim",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts"
    " num_local_experts n_routed_experts mamba_n_heads mamba_num_heads num_experts_total",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads"
    " num_experts_per_tok moe_topk linear_num_key_heads linear_num_value_heads index_n_heads num_experts_per_token"
    " prompt_length",
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace"
    " mamba_n_groups n_groups bos_token_id",
    0: "pad_token_id num_nextn_predict_layers num_kv_shared_layers",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()} | {"eos_token_id": 2}


def tiny_config(name):
    """The family's own config with every size that it has made small, and one layer of each kind."""
    default = AutoConfig.for_model(name).get_text_config()
    asked = default.to_dict()
    names = {default.attribute_map.get(key, key): key for key in SMALL}
    settings = {key: SMALL[names[key]] for key in names if asked.get(key) is not None}
    if asked.get("num_key_value_heads") == asked.get("num_attention_heads"):
        settings["num_key_value_heads"] = SMALL["num_attention_heads"]
    kinds = asked.get("layer_types")
    if kinds:
        chosen = list(dict.fromkeys(kinds))
        settings["layer_types"] = chosen if len(chosen) > 1 else chosen * 2
        settings[default.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(settings["layer_types"])
    return type(default)(**settings)


def tiny_model(name):
    """A random model of the family, counted before it is made."""
    settings = tiny_config(name)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(settings).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f}M parameters are left of its default config")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2)
    return model


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
    said = {}
    try:
        with limit(SECONDS), tempfile.TemporaryDirectory() as folder:
            try:
                model = tiny_model(name)
                model(torch.tensor([[3, 4, 5]]), use_cache=False)
            except Exception as error:  # whatever a family makes of a small config
                return {"way": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
            try:
                teach_scorer(model)
                args = config(Path(folder), bf16=False)
                collator = choose_collator(ModelRun(model), DATA, args, pad_token_id=0)
            except InputError as error:
                return {"way": "refused", "why": str(error)[:200]}
            alone = getattr(collator, "one_by_one", None)
            said["way"] = {None: "packed", False: "padded", True: "row by row"}[alone]
            ours, stock = step(model, collator(DATA)), step_alone(model, DATA, None)
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
