"""What a training command takes beside `KTOConfig` and `RowOptions`: the data and the model, under TRL's names."""

from dataclasses import dataclass, field, fields
from os.path import expanduser
from typing import Any

from fastkto.cli.options.strict import nearest
from fastkto.config import WEIGHT_DTYPES
from fastkto.errors import InputError
from fastkto.ranges import check_ranges


@dataclass
class MixturePart:
    """One entry of `datasets`; the names are those of `datasets.load_dataset`, and `reader` is that of `RowOptions`."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str] | None = None
    split: str = "train"
    columns: list[str] | None = None
    reader: str | None = None
    fraction: float | None = None


@dataclass
class DataArguments:
    """Where the rows come from."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A .json, .jsonl, .csv or .parquet file, a pattern for such files, a folder of them or one of "
            "save_to_disk, or a Hub id."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, where eval_strategy is set."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Read the rows as they are needed."})
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "In a YAML file, a list of: path, name, data_dir, data_files, split, columns, reader, fraction."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Stream the datasets of `datasets`."})
    test_split_size: float | None = field(
        default=None,
        metadata={"help": "Share (below 1) or number of rows held out to evaluate on; no prompt is on both sides."},
    )
    one_per_prompt: bool = field(default=False, metadata={"help": "Train on one answer a prompt, drawn by the seed."})
    frac_unique_desirable: float | None = field(
        default=None, metadata={"help": "Share of the unique desirable examples that is kept."}
    )
    frac_unique_undesirable: float | None = field(
        default=None, metadata={"help": "Share of the unique undesirable examples that is kept."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Jinja file that replaces the tokenizer's chat template, or chatml for a base model."},
    )
    ignore_bias_buffers: bool = field(
        default=False, metadata={"help": "Accepted for TRL's sake; without effect there and here."}
    )

    def __post_init__(self) -> None:
        """Check the numbers, and the keys of each entry of `datasets`."""
        check_ranges(self)
        self.mixture = [_part(entry) for entry in self.datasets or []]


@dataclass
class ModelArguments:
    """Which model is trained, and how."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub model."})
    dtype: str | None = field(
        default="float32",
        metadata={"help": "Dtype of the weights.", "choices": ["auto", *WEIGHT_DTYPES]},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of the model, e.g. sdpa or flash_attention_2."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, over its rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter, or all-linear; unset: peft's."}
    )
    lora_target_parameters: list[str] | None = field(default=None, metadata={"help": "Parameters that get an adapter."})
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that are trained whole."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Task type that the adapter's config states."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(rank)."})
    use_dora: bool = field(default=False, metadata={"help": "Train the weights' magnitude and direction separately."})
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Quantise the frozen weights to 8 bits (bitsandbytes)."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Quantise the frozen weights to 4 bits (bitsandbytes)."}
    )
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "4-bit type.", "choices": ["fp4", "nf4"]})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantise the 4-bit scales too."})
    bnb_4bit_quant_storage: str | None = field(
        default=None, metadata={"help": "Dtype that the 4-bit weights are packed in."}
    )

    def __post_init__(self) -> None:
        """Refuse numbers and combinations that cannot train."""
        check_ranges(self)
        quantised = "load_in_8bit" if self.load_in_8bit else "load_in_4bit"
        if self.load_in_8bit and self.load_in_4bit:
            raise InputError("load_in_8bit", True, "False with load_in_4bit", "Choose one of the two.")
        if getattr(self, quantised) and not self.use_peft:
            raise InputError(quantised, True, "False without use_peft: quantised weights do not train", "Set use_peft.")


@dataclass
class LaunchArguments:
    """Several processes: what is handed to `accelerate launch`."""

    accelerate_config: str | None = field(
        default=None, metadata={"help": "Config file of accelerate: FSDP, DeepSpeed, machines."}
    )
    num_processes: int | None = field(default=None, metadata={"help": "Processes in all; unset: one per GPU."})
    num_machines: int | None = field(default=None, metadata={"help": "Machines."})
    machine_rank: int | None = field(default=None, metadata={"help": "Rank of this machine."})
    main_process_ip: str | None = field(default=None, metadata={"help": "Address of the machine of rank 0."})
    main_process_port: int | None = field(default=None, metadata={"help": "Port of the machine of rank 0."})
    gpu_ids: str | None = field(default=None, metadata={"help": "GPUs of this machine to use, separated by commas."})

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_ranges(self)


OF_LORA = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
    *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
)
OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
IGNORED_OF_MODEL = (
    *((name, lambda model: not model.use_peft, "use_peft is not set") for name in OF_LORA),
    *((name, lambda model: not model.load_in_4bit, "load_in_4bit is not set") for name in OF_4BIT),
)
IGNORED_OF_DATA = (
    ("streaming", lambda data: not data.mixture, "it is of datasets; dataset_streaming is of dataset_name"),
    ("dataset_streaming", lambda data: bool(data.mixture), "it is of dataset_name; streaming is of datasets"),
    ("dataset_config", lambda data: bool(data.mixture), "each of datasets has its name"),
)
"""For `training/checks.say_ignored`: the fields that others switch on."""


def _part(entry: dict[str, Any]) -> MixturePart:
    known = [part.name for part in fields(MixturePart)]
    for key in entry:
        if key not in known:
            raise InputError("datasets", entry, f"the keys {known}", f"Remove {key!r}{nearest(str(key), known)}.")
    if not isinstance(entry.get("path"), str):
        raise InputError("datasets", entry, "a path in each entry", "Add `path: FILE_OR_ID`.")
    part = MixturePart(**entry)
    check_ranges(part)
    part.data_dir, part.data_files = _expanded(part.data_dir), _expanded(part.data_files)
    return part


def _expanded(paths: Any) -> Any:
    """The same paths, each ~ as the home folder."""
    if isinstance(paths, dict):
        return {split: _expanded(path) for split, path in paths.items()}
    if isinstance(paths, list):
        return [_expanded(path) for path in paths]
    return expanduser(paths) if isinstance(paths, str) else paths
