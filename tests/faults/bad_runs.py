"""Bad settings and models."""

from collections.abc import Callable
from pathlib import Path

import torch

from faults.cases import case, plain, train
from faults.folder import append, change_json, cut, rewrite_weights

# config


def yaml(name: str, text: str) -> None:
    def write() -> list[str]:
        train()
        append("config.yaml", text)
        return ["train", "config.yaml"]

    case("config", name)(write)


case("config", "is not there")(lambda: ["train", "nowhere.yaml"])
yaml("does not parse", "beta: [0.1\n")
yaml("builds a Python object", "run_name: !!python/object/apply:os.getcwd []\n")
yaml("an unknown field", "learning_rat: 1.0e-6\n")
yaml("a word for a number", "learning_rate: abc\n")
yaml("a fraction for a whole number", "logging_first_step: 1\nmax_grad_norm: x\n")
yaml("perhaps for true or false", "use_peft: maybe\n")
yaml("a loss that is unknown", "loss_type: dpo\n")
yaml("a batch of one row", "per_device_train_batch_size: 1\n")
yaml("a beta below zero", "beta: -0.1\n")
yaml("a number that is none", "desirable_weight: .nan\n")
yaml("an infinite interval", "eval_steps: .inf\n")
yaml("no step at all", "gradient_accumulation_steps: 0\n")
yaml("a key that is there twice", "seed: 1\nseed: 2\n")
yaml("aliases of aliases", "a: &a [x]\n" + "b: &a [*a, *a, *a]\n" * 9)
yaml("brackets without end", "a: " + "[" * 9999)
yaml("a key that speaks to the terminal", '"\\e[2J": 1\n')
yaml("a revision of a folder", "model_revision: v2\n")
yaml("an option of the launcher", "mixed_precision: bf16\n")
yaml("4 and 8 bits", "load_in_4bit: true\nload_in_8bit: true\n")
yaml("4 bits without an adapter", "load_in_4bit: true\n")
yaml("an answer to NaN that is unknown", "on_nonfinite: ignore\n")
yaml("a backend that is not here", "head_backend: triton\n")
yaml("a launcher's file that is not there", "accelerate_config: zero9.yaml\n")
yaml("the best model of unequal saves", "load_best_model_at_end: true\neval_strategy: epoch\n")
yaml("a mapping where an adapter's modules belong", "use_peft: true\nlora_target_modules: [nothing_of_this]\n")
yaml("keywords of the model that are no mapping", "model_init_kwargs: fast\n")
yaml("a stream without an end", "dataset_streaming: true\nmax_steps: -1\n")
case("config", "a flag that is unknown")(lambda: [*train(), "--desirable_wieght", "2"])
case("config", "a flag's value of another kind")(lambda: [*train(), "--learning_rate", "abc"])
case("config", "an unknown command")(lambda: ["trian", "config.yaml"])


@case("config", "a list of nothing")
def _() -> list[str]:
    Path("config.yaml").write_text("- beta: 0.1\n")
    return ["train", "config.yaml"]


@case("config", "of another encoding")
def _() -> list[str]:
    Path("config.yaml").write_bytes("run_name: na\xefve".encode("latin-1"))
    return ["train", "config.yaml"]


@case("config", "an output folder that is a file")
def _() -> list[str]:
    Path("taken").write_text("mine")
    return train(output_dir="taken")


@case("config", "an output folder within a file")
def _() -> list[str]:
    Path("taken").write_text("mine")
    return train(output_dir="taken/out")


plain("config", "an output folder where nothing can be written", output_dir="/proc/1/out")

# model

plain("model", "no name", model_name_or_path=None)
plain("model", "is not there", model_name_or_path="./nowhere")


def model(name: str, **changes: object) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(damage: Callable[[], None]) -> Callable[[], None]:
        def write() -> list[str]:
            damage()
            return train(**changes)

        case("model", name)(write)
        return damage

    return add


@model("an empty folder", model_name_or_path="void")
def _() -> None:
    Path("void").mkdir()


@model("an adapter alone", model_name_or_path="adapter")
def _() -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")


@model("half of its weights")
def _() -> None:
    cut("model/model.safetensors")


@model("no weights")
def _() -> None:
    Path("model/model.safetensors").unlink()


@model("weights as a pickle")
def _() -> None:
    Path("model/model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(264, 32)}, "model/pytorch_model.bin")


@model("weights that are NaN")
def _() -> None:
    rewrite_weights("model", lambda name, x: x * float("nan") if name.endswith("norm.weight") else x)


@model("a config that is no JSON")
def _() -> None:
    cut("model/config.json")


@model("a kind that is unknown")
def _() -> None:
    change_json("model/config.json", model_type="llama99", architectures=["Llama99ForCausalLM"])


@model("code of its own")
def _() -> None:
    Path("model/modeling_own.py").write_text("raise SystemExit('this must not run')\n")
    auto_map = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    change_json("model/config.json", model_type="own", auto_map=auto_map, architectures=["Own"])


@model("weights of another shape")
def _() -> None:
    change_json("model/config.json", intermediate_size=48)


@model("an encoder and a decoder")
def _() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    for path in Path("model").glob("*.safetensors"):
        path.unlink()
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 264}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained("model")
