"""What every numeric setting takes: one table for the config, the command line and docs/settings.md.

A field that Hugging Face's `TrainingArguments` has stands here too. `check_ranges` is what a dataclass calls once it is
filled; a number that is not in its range is refused by name.
"""

import sys
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, NamedTuple

from fastkto.errors import InputError

MANY = 10**9
LARGE = 1e6
ANY = sys.float_info.max


class Range(NamedTuple):
    """The numbers from `low` to `high` that a field takes, and words or numbers with a meaning of their own."""

    low: float
    high: float
    above: bool = False
    """Without `low` itself."""
    below: bool = False
    """Without `high` itself."""
    whole: bool = False
    whole_from_1: bool = False
    """A share below 1, a count from there on."""
    two: bool = False
    """A list of two such numbers, the lower first."""
    besides: Mapping[Any, str] = {}
    """Values outside the range that are taken, and what each means."""

    def holds(self, value: Any) -> bool:
        """Whether a field may have this value; a number written as text is none."""
        if isinstance(value, str) or value is None:
            return value in self.besides
        if self.two:
            one = self._replace(two=False, besides={})
            pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(one.holds, value))
            return pair and value[0] < value[1]
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        if number in self.besides:
            return True
        if not self.low <= number <= self.high:
            return False
        if (self.above and number == self.low) or (self.below and number == self.high):
            return False
        return not self.whole_from_1 or number < 1 or number == int(number)

    def __str__(self) -> str:
        kind, low, high = "a whole number" if self.whole else "a number", _short(self.low), _short(self.high)
        if self.whole_from_1:
            share = "a share above 0 and below 1" if self.above else "0, a share below 1"
            text = f"{share}, or a whole number up to {high}"
        elif self.two:
            text = "two finite numbers, the lower first"
        elif self.low == self.high:
            text = low
        elif self.high == ANY:
            text = "a finite number"
        elif self.above or self.below:
            ends = "above" if self.above else "from", "and below" if self.below else "and at most"
            text = f"{kind} {ends[0]} {low} {ends[1]} {high}"
        else:
            text = f"{kind} from {low} to {high}"
        words = [f"{'none' if value is None else value} ({means})" for value, means in self.besides.items()]
        return ", or ".join([text, *words])

    def or_(self, besides: Mapping[Any, str]) -> "Range":
        """The same, and these values."""
        return self._replace(besides={**self.besides, **besides})


COUNT = Range(1, MANY, whole=True)
FROM_0 = Range(0, MANY, whole=True)
PROCESSES = Range(1, 100_000, whole=True)
POSITIVE = Range(0, LARGE, above=True)
NOT_NEGATIVE = Range(0, LARGE)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, below=True)
INTERVAL = Range(0, MANY, above=True, whole_from_1=True)
SEED = Range(0, 2**32 - 1, whole=True)


RANGES: dict[str, Range] = {
    # the length of a run
    "num_train_epochs": POSITIVE,
    "max_steps": COUNT.or_({-1: "num_train_epochs decides"}),
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "per_device_eval_batch_size": COUNT,
    "eval_accumulation_steps": COUNT.or_({None: "results stay on the device"}),
    # the optimizer
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": INTERVAL._replace(above=False),
    "warmup_ratio": SHARE.or_({None: "warmup_steps decides"}),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE_BELOW_1,
    "adam_beta2": SHARE_BELOW_1,
    "adam_epsilon": Range(0, 1, above=True),
    "max_grad_norm": NOT_NEGATIVE.or_({None: "no clipping, as 0"}),
    "label_smoothing_factor": Range(0, 0),
    "neftune_noise_alpha": NOT_NEGATIVE.or_({None: "no noise"}),
    # the loss
    "beta": POSITIVE,
    "desirable_weight": POSITIVE.or_({"auto": "the paper's rule for the data"}),
    "undesirable_weight": POSITIVE,
    "router_aux_loss_coef": NOT_NEGATIVE.or_({None: "the model's config decides"}),
    "ref_model_mixup_alpha": Range(0, 1, above=True),
    "ref_model_sync_steps": COUNT,
    # the batch
    "max_length": COUNT.or_({None: "no cut"}),
    "max_tokens_per_forward": COUNT.or_({None: "one forward"}),
    "pad_to_multiple_of": COUNT.or_({"auto": "no rounding", None: "no rounding"}),
    "precompute_ref_batch_size": COUNT.or_({None: "unset"}),
    # what is logged, evaluated and saved
    "logging_steps": INTERVAL,
    "eval_steps": INTERVAL.or_({None: "logging_steps"}),
    "eval_delay": Range(0, MANY),
    "save_steps": INTERVAL,
    "save_total_limit": COUNT.or_({None: "every checkpoint is kept"}),
    # the machine
    "seed": SEED,
    "data_seed": SEED.or_({None: "seed"}),
    "dataloader_num_workers": Range(0, 1000, whole=True),
    "dataloader_prefetch_factor": COUNT.or_({None: "torch's"}),
    "dataset_num_proc": Range(1, 1000, whole=True).or_({None: "one process"}),
    "torch_empty_cache_steps": COUNT.or_({None: "never"}),
    "ddp_bucket_cap_mb": COUNT.or_({None: "torch's"}),
    "ddp_timeout": COUNT,
    "local_rank": FROM_0.or_({-1: "one process"}),
    "num_processes": PROCESSES.or_({None: "one per GPU"}),
    "num_machines": PROCESSES.or_({None: "one"}),
    "machine_rank": Range(0, 99_999, whole=True).or_({None: "0"}),
    "main_process_port": Range(0, 65_535, whole=True).or_({None: "accelerate's"}),
    # the adapter
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": SHARE_BELOW_1,
    # the rows
    "label_threshold": Range(-ANY, ANY).or_({None: "labels are no scores"}),
    "label_band": Range(-ANY, ANY, two=True).or_({None: "labels are no scores"}),
    "test_split_size": INTERVAL.or_({None: "nothing is held out"}),
    "frac_unique_desirable": SHARE.or_({None: "all are kept"}),
    "frac_unique_undesirable": SHARE.or_({None: "all are kept"}),
    "fraction": NOT_NEGATIVE.or_({None: "the dataset as it is"}),
}


def _short(number: float) -> str:
    return f"{number:.0e}".replace("e+0", "e") if number in (MANY, LARGE) else f"{number:,.12g}"


def check_ranges(settings: Any) -> None:
    """Raise `InputError` for the first field of a dataclass whose number is outside its range."""
    for field in fields(settings):
        if field.name in RANGES:
            check_range(field.name, getattr(settings, field.name))


def check_range(name: str, value: Any, where: str | None = None) -> None:
    """Raise `InputError`, for the place `where` if it is known, unless `value` is one that the field `name` takes."""
    if not RANGES[name].holds(value):
        raise InputError(where or name, value, str(RANGES[name]), "Correct it, or leave it out for its default.")
