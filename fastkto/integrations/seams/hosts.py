"""The hosts, and for each way into one what it leans on: the one place to change when a host is new or changes."""

from typing import NamedTuple


class Seam(NamedTuple):
    """Something of a host that an integration replaces or leans on."""

    path: str
    """Module and name, as in "trl:KTOTrainer.log"."""
    parameters: tuple[tuple[str, ...], ...] = ()
    """The lists of parameters that are known, `self` and `ctx` left out; without one any will do."""
    mentions: tuple[str, ...] = ()
    """Names and strings that its code has to use."""
    entries: tuple[str, ...] = ()
    """Keys that it has to have, of a dict."""

    @property
    def name(self) -> str:
        """As Python writes it."""
        return self.path.replace(":", ".")


class Way(NamedTuple):
    """One integration: what it is called, the host's package, the versions it was run with, its seams."""

    name: str
    package: str
    tried: tuple[str, ...]
    seams: tuple[Seam, ...]
    first: tuple[str, ...] = ()
    """Modules to import before: they change the host."""
    checkout: bool = False
    """The host is a folder of files, which pip does not know: `tried` are its commits."""


_TRL = (
    *("1.9.0", "1.9.1", "1.9.2", "1.10.0", "1.11.0", "1.12.0"),
    *("1.13.0", "1.14.0", "1.14.1", "1.14.2", "1.15.0", "1.16.0"),
)
_LOSS = ("beta", "loss_type", "desirable_weight", "undesirable_weight", "aux_loss_enabled", "router_aux_loss_coef")
_STATE = ("precompute_ref_logps", "_is_vision_dataset", "_metrics", "_total_train_tokens")
_HEAD = ("targets", "temperature", "chunk_size", "final_logit_softcapping", "logit_scale")
_KTO = (
    Seam("trl:KTOTrainer.__init__", mentions=(*_LOSS, *_STATE)),
    Seam("trl:KTOTrainer._compute_loss", (("model", "inputs", "return_outputs"),)),
    Seam("trl:KTOTrainer._compute_kl_logps", (("model", "batch"),)),
    Seam("trl:KTOTrainer.compute_ref_log_probs", (("model", "inputs"),)),
    Seam("trl:KTOTrainer._precompute_ref_logps", (("dataset", "name", "batch_size"),)),
    Seam("trl:KTOTrainer.log", (("logs", "start_time"),)),
    Seam(
        "trl.trainer.kto_trainer:DataCollatorForUnpairedPreference.torch_call",
        (("examples",),),
        mentions=("pad_token_id", "prompt_ids", "completion_ids", "KL_completion_ids", "ref_logps", "ref_KL_logps"),
    ),
    Seam("trl.trainer.utils:use_adapter", (("model", "adapter_name"),)),
)

WAYS = {
    "trl": Way("fastkto.integrations.trl.KTOTrainer", "trl", _TRL, _KTO),
    "trl head": Way(
        "fastkto.integrations.trl.patch_trl_head",
        "trl",
        _TRL,
        (
            Seam(
                "trl.trainer.utils:_ChunkedLogProbFunction.forward",
                (
                    ("last_hidden", "weight", *_HEAD),
                    ("last_hidden", "weight", "bias", *_HEAD),
                    ("hidden", "weight", "bias", *_HEAD, "outputs"),
                ),
            ),
        ),
    ),
    "axolotl": Way(
        "fastkto.integrations.axolotl",
        "axolotl",
        ("0.19.0",),
        (
            Seam("axolotl.core.trainers.trl:AxolotlKTOTrainer"),
            Seam("axolotl.core.builders.rl:HFRLTrainerBuilder._get_trainer_cls", mentions=("trainer_cls",)),
            *_KTO,
        ),
    ),
    "llamafactory": Way(
        "fastkto.integrations.llamafactory",
        "llamafactory",
        ("0.9.5",),
        (
            Seam("llamafactory.train.kto.workflow:run_kto", mentions=("CustomKTOTrainer",)),
            Seam("llamafactory.train.kto.workflow:CustomKTOTrainer.forward", (("model", "batch", "prefix"),)),
            Seam("llamafactory.train.kto.workflow:CustomKTOTrainer.concatenated_forward", mentions=("forward", "kl_")),
        ),
    ),
    "ms-swift": Way(
        "fastkto.integrations.swift",
        "ms-swift",
        ("4.6.0",),
        (
            Seam("swift.trainers:TrainerFactory.TRAINER_MAPPING", entries=("kto",)),
            Seam("swift.rlhf_trainers.kto_trainer:KTOTrainer._get_model_kwargs", (("inputs", "prefix"),)),
            Seam("swift.rlhf_trainers.kto_trainer:KTOTrainer.get_use_logits_to_keep", (("default_value",),)),
            Seam(
                "swift.rlhf_trainers.kto_trainer:KTOTrainer.get_per_token_logps",
                (("logits", "labels", "label_pad_token_id", "reduction"),),
            ),
        ),
    ),
    "halos": Way(
        "fastkto.integrations.halos",
        "HALOs",
        ("4831988",),
        (
            Seam("train.trainers:KTOTrainer.forward", (("model", "batch", "use_cache"),)),
            Seam("train.trainers:KTOTrainer.get_batch_logps", (("logits", "labels"),)),
            Seam("train.trainers:KTOTrainer.prepare_accelerator", ((),)),
            Seam(
                "train.trainers:KTOTrainer.get_batch_metrics",
                (("batch", "mode"),),
                mentions=("forward", "cache_reference_logprobs"),
            ),
        ),
        checkout=True,
    ),
    "liger": Way(
        "fastkto.integrations.liger",
        "liger-kernel",
        ("0.8.5",),
        (
            Seam(
                "liger_kernel.chunked_loss:LigerFusedLinearKTOLoss.__init__",
                (("ignore_index", "beta", "compiled", "use_ref_model", "average_log_prob", "chunk_size"),),
            ),
            Seam(
                "liger_kernel.chunked_loss:LigerFusedLinearKTOLoss.forward",
                (
                    (
                        *("_input", "lin_weight", "target", "bias", "preference_labels"),
                        *("ref_input", "ref_weight", "ref_bias", "kl"),
                    ),
                ),
            ),
        ),
    ),
    "unsloth": Way("fastkto.integrations.trl.KTOTrainer", "unsloth", ("2026.10.9",), _KTO, first=("unsloth",)),
}
