"""From what the trainer is given to a policy, its tokenizer and its adapter, each checked."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fastkto.config import WEIGHT_DTYPES, KTOConfig
from fastkto.engines import left_to_first_rank, partitioned, whole_shape
from fastkto.errors import InputError, keywords_of, require
from fastkto.step.reference_model import StartingWeights, check_separate, frozen_copy
from fastkto.training.checks import check_revision, check_settings
from fastkto.training.faults.incomplete import check_complete, why_not_loaded
from fastkto.trunk.modules import content, first_non_finite, is_peft_model, unwrap_peft

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

logger = logging.get_logger(__name__)


def model_source(name: str | None, argument: str = "model_name_or_path") -> str:
    """The folder or Hub id of a model, its ~ expanded."""
    if not name:
        raise InputError(argument, name, "the folder or Hub id of a model", f"Give it with --{argument}.")
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise InputError(argument, name, "a whole model, not an adapter", "Merge it first with `fastkto merge`.")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(argument, name, "a folder that exists, or a Hub id", f"Looked in {Path.cwd()}.")
    return name


def config_for(args: KTOConfig | None, model: "str | PreTrainedModel | Any") -> KTOConfig:
    """The arguments given, or the defaults with a folder named after the model; batches travel whole, unwaited for."""
    if args is None:
        name = model if isinstance(model, str) else unwrap_peft(model).config._name_or_path
        args = KTOConfig(f"{name.rstrip('/').rpartition('/')[-1] or 'model'}-KTO")
    if not isinstance(args, KTOConfig):
        found = f"{type(args).__module__.partition('.')[0]}.{type(args).__name__}"
        fix = "Import KTOConfig from fastkto: it has every field of TRL's under its name."
        raise InputError("args", found, "a fastkto.KTOConfig", fix)
    accelerator_config: Any = args.accelerator_config
    if accelerator_config.dispatch_batches:
        logger.warning("accelerator_config: dispatch_batches has no effect, every process reads its own batches.")
    accelerator_config.dispatch_batches = False  # it cuts and joins batches by rows, which ours do not survive
    # from pinned memory a copy does not wait for the step before it
    accelerator_config.non_blocking |= args.dataloader_pin_memory
    check_settings(args)
    return args


def load_policy(
    model: "str | PreTrainedModel | Any", args: KTOConfig, quantization_config: "BitsAndBytesConfig | None"
) -> Any:
    """The model to train: loaded by id in float32 unless `model_init_kwargs` says otherwise, or taken as it is."""
    if not isinstance(model, str):
        for name, value in (
            ("quantization_config", quantization_config),
            ("model_init_kwargs", args.model_init_kwargs),
        ):
            if value is not None:
                fix = "Pass the model's id or folder instead of the loaded model, or leave the argument out."
                raise InputError(name, value, "None with a model that is already loaded", fix)
        check_trains("model", getattr(model, "is_loaded_in_4bit", False), args)
        return check_weights("model", model)
    kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
        check_trains("quantization_config", quantization_config.load_in_4bit, args)
    check_revision("model_init_kwargs", model, kwargs.get("revision"))
    dtype = kwargs.setdefault("dtype", "float32")
    if isinstance(dtype, str):
        if dtype not in ("auto", *WEIGHT_DTYPES):
            raise InputError("dtype", dtype, f"one of {('auto', *WEIGHT_DTYPES)}", "Correct the name.")
        kwargs["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    kwargs.setdefault("use_safetensors", True)  # a pickle can run code
    try:
        with keywords_of("model_init_kwargs", args.model_init_kwargs):
            both: Any = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True, **kwargs)
    except InputError:
        raise
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise why_not_loaded(model, error) or error from error
    loaded, loading = both
    if not left_to_first_rank():
        check_complete(loaded, loading)
    return check_weights("model", loaded)


def load_tokenizer(
    processing_class: PreTrainedTokenizerBase | None, model: Any, args: KTOConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer given, or the model's own; the model's configs learn its padding token."""
    source: Any = unwrap_peft(model)
    tokenizer = processing_class
    if tokenizer is None:
        revision = dict(args.model_init_kwargs or {}).get("revision")  # type: ignore[arg-type]
        tokenizer = AutoTokenizer.from_pretrained(
            source.config._name_or_path, revision=revision, trust_remote_code=args.trust_remote_code
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        fix = "Pass a tokenizer; models that read images are not supported."
        raise InputError("processing_class", type(tokenizer).__name__, "a PreTrainedTokenizerBase", fix)
    if tokenizer.eos_token_id is None:
        fix = "Set tokenizer.eos_token: without it no completion has an end to learn."
        raise InputError("processing_class", type(tokenizer).__name__, "a tokenizer with an EOS token", fix)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary = vocabulary_of(source)
    if len(tokenizer) > vocabulary and max(tokenizer.get_vocab().values()) >= vocabulary:
        fix = "Pass the tokenizer that belongs to the model, or call model.resize_token_embeddings(len(tokenizer))."
        raise InputError("processing_class", len(tokenizer), f"at most the model's {vocabulary} tokens", fix)
    source.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if source.generation_config is not None:
        source.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def check_saves(model: Any) -> None:
    """Raise `InputError` where what goes into every checkpoint beside the weights cannot be saved."""
    source: Any = unwrap_peft(model)
    for name in ("config", "generation_config"):
        part = getattr(source, name)
        with tempfile.TemporaryDirectory() as folder:
            try:
                if part is not None:
                    part.save_pretrained(folder)
            except (ValueError, TypeError) as error:
                says = " ".join(str(error).split())
                expected = f"one that can be saved, but {says}"
                raise InputError(name, type(part).__name__, expected, f"Mend model.{name}.") from error


def add_adapter(model: Any, peft_config: "PeftConfig", args: KTOConfig) -> Any:
    """The model with a new adapter in training."""
    peft = require("peft", "peft")
    if not isinstance(peft_config, peft.PeftConfig):
        raise InputError(
            "peft_config", type(peft_config).__name__, "a peft.PeftConfig", "Pass e.g. peft.LoraConfig(...)."
        )
    if is_peft_model(model):
        fix = "Leave peft_config out to train its adapter, or merge the adapter first (`fastkto merge`)."
        raise InputError("peft_config", type(peft_config).__name__, "None with a model that is a PeftModel", fix)
    return peft.get_peft_model(model, peft_config)


def keep_float32_outputs(accelerator: Any) -> None:
    """Under FSDP2 accelerate has every output cast to the compute dtype: summed log-probs would lose whole nats."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def check_trains(argument: str, in_4bit: bool, args: KTOConfig) -> None:
    """Raise `InputError` for 4-bit weights on a CPU: they repack for inference there, and then pass no gradient."""
    if in_4bit and args.device.type == "cpu":
        fix = "Train on a GPU, or load in 8 bits."
        raise InputError(argument, "load_in_4bit", "not 4 bits on a CPU, where the adapter gets no gradient", fix)


def vocabulary_of(model: Any) -> int:
    """How many token ids the model has an embedding for."""
    embedding: Any = unwrap_peft(model).get_input_embeddings()
    return int(whole_shape(embedding.weight)[0])


def check_weights(argument: str, model: Any) -> Any:
    """The model, unless one of its weights is NaN or inf."""
    name = None if left_to_first_rank() else first_non_finite(model)
    if name is not None:
        fix = "The weights are broken before training starts: load another checkpoint."
        raise InputError(argument, f"{name} holds NaN or inf", "finite weights", fix)
    return model


def check_reference(ref_model: Any, model: Any) -> Any:
    """A reference that was passed in: another model than the policy, with finite weights."""
    if ref_model is None:
        return None
    if ref_model is model:
        fix = "Leave ref_model out: the reference is then a frozen copy of the model as it is now."
        raise InputError("ref_model", "the same object as model", "another object, or None", fix)
    if not isinstance(ref_model, torch.nn.Module):
        fix = "Load it first, e.g. with AutoModelForCausalLM.from_pretrained."
        raise InputError("ref_model", ref_model, "a loaded model, or None", fix)
    return check_weights("ref_model", ref_model)


class Models(NamedTuple):
    """The policy ready to train, and what it is held against."""

    policy: Any
    reference: PreTrainedModel | None
    """A second model, where the reference is one."""
    start: StartingWeights | None
    """Of a PeftModel that is its own reference."""


def policy_and_reference(
    model: Any,
    ref_model: PreTrainedModel | None,
    args: KTOConfig,
    peft_config: "PeftConfig | None",
    source: str | None = None,
) -> Models:
    """The policy and its reference. `source`: the id or folder that the policy was loaded from, where it was."""
    start = None
    for each in (model, ref_model):  # a mark of an earlier trainer, with which this one would leave autocast out
        if each is not None:
            vars(each).pop("_is_accelerate_prepared", None)
    if peft_config is not None:
        model, start = _with_new_adapter(model, peft_config, args)
    elif is_peft_model(model):
        start = StartingWeights(model, _trained(model), adapter_off=False)
    if not is_peft_model(model):
        if ref_model is None and not args.precompute_ref_log_probs:
            return Models(model, _as_it_is_now(model, source, args), None)
        if ref_model is not None:
            check_separate(ref_model, model)
        return Models(model, ref_model, None)
    if args.sync_ref_model:
        fix = "Train all weights, or leave sync_ref_model out."
        raise InputError("sync_ref_model", True, "False with an adapter: its reference is not a second model", fix)
    if args.gradient_checkpointing:
        if model.active_peft_config.peft_type == "PREFIX_TUNING":
            fix = "Set it to False."
            raise InputError("gradient_checkpointing", True, "False: the prefix travels in the cache", fix)
        model.enable_input_require_grads()
    if ref_model is not None:
        check_separate(ref_model, model)
    return Models(model, ref_model, start if ref_model is None else None)


def _with_new_adapter(model: Any, peft_config: "PeftConfig", args: KTOConfig) -> tuple[Any, StartingWeights]:
    """The model in its new adapter. The reference is the model with the adapter off and trained biases put back; where
    the adapter rewrote the base (PiSSA), the model as it is now."""
    base = {id(parameter): (parameter, content(parameter)) for parameter in model.parameters()}
    model = add_adapter(model, peft_config, args)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    if any(key not in named or content(parameter) != before for key, (parameter, before) in base.items()):
        return model, StartingWeights(model, _trained(model), adapter_off=False)
    trained_base = [name for name in _trained(model) if id(model.get_parameter(name)) in base]
    return model, StartingWeights(model, trained_base, adapter_off=True)


def _trained(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _as_it_is_now(model: Any, source: str | None, args: KTOConfig) -> PreTrainedModel:
    """A frozen copy; of weights that ZeRO-3 has taken apart, the model loaded a second time."""
    if not partitioned(model):
        return frozen_copy(model)
    if source is None:
        fix = "Give the model by its id or folder, or pass ref_model, or set precompute_ref_log_probs=True."
        raise InputError("ref_model", None, "a model: a policy taken apart by ZeRO-3 cannot be copied", fix)
    again: PreTrainedModel = load_policy(source, args, None)
    return again.requires_grad_(False).eval()
