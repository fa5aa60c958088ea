"""Arguments that cannot be right: a sentence each, in place of a broadcast, a stray read or a raw error."""

import functools

import pytest
import torch
import torch.distributed as dist

from fastkto import fused_linear_kto, kto_loss, token_logprobs
from fastkto.errors import InputError

B = 4


def given(**changes):
    x = torch.linspace(-3, -1, B)
    labels = torch.tensor([True, False, True, False])
    return {"logps": x, "ref_logps": x + 1, "labels": labels, "kl_logps": x, "ref_kl_logps": x - 1, **changes}


WRONG = {
    "logps of (B, 1)": ({"logps": torch.zeros(B, 1)}, r"^logps: got \(4, 1\), expected one dimension"),
    "a list of logps": ({"logps": [0.0] * B}, "^logps: got 'list', expected a tensor"),
    "ref_logps of (B, 1)": ({"ref_logps": torch.zeros(B, 1)}, r"^ref_logps: got \(4, 1\)"),
    "one ref_logp": ({"ref_logps": torch.zeros(1)}, r"^ref_logps: got \(1,\)"),
    "a list of labels": ({"labels": [True] * B}, "^labels: got 'list'"),
    "labels elsewhere": ({"labels": torch.zeros(B, dtype=torch.bool, device="meta")}, "^labels: got 'meta'"),
    "ref_logps elsewhere": ({"ref_logps": torch.zeros(B, device="meta")}, "^ref_logps: got 'meta'"),
    "a list of weights": ({"weights": [1.0] * B}, "^weights: got 'list'"),
    "integers for weights": ({"weights": torch.ones(B, dtype=torch.int64)}, "^weights: got torch.int64"),
    "beta inf": ({"beta": float("inf")}, "^beta: got inf"),
    "beta NaN": ({"beta": float("nan")}, "^beta: got nan"),
    "a negative class weight": ({"desirable_weight": -1.0}, "^desirable_weight: got -1.0"),
    "a class weight of NaN": ({"undesirable_weight": float("nan")}, "^undesirable_weight: got nan"),
    "no rows to divide by": ({"num_rows": 0}, "^num_rows: got 0"),
    "rows below 0": ({"num_rows": -2.0}, "^num_rows: got -2.0"),
    "a reduce that returns None": ({"reduce": lambda x: None}, "^reduce: got None, expected a function that returns"),
    "a reduce of another shape": ({"reduce": lambda x: x.sum()}, "^reduce: got "),
}


@pytest.mark.parametrize("changes", [case[0] for case in WRONG.values()], ids=WRONG)
def test_a_loss_argument_that_cannot_be_right_is_named(changes):
    message = next(text for case, text in WRONG.values() if case is changes)
    with pytest.raises(InputError, match=message):
        kto_loss(**given(**changes))


def test_all_reduce_itself_is_named_with_what_to_write(tmp_path):
    """It adds up in place and returns None: z0 was 0 without a word."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match="dist.all_reduce works in place and returns None"):
            kto_loss(**given(reduce=dist.all_reduce))
    finally:
        dist.destroy_process_group()


def head(**changes):
    inputs = {
        "hidden": torch.ones(B, 3),
        "weight": torch.ones(5, 3),
        "targets": torch.tensor([0, 1, 2, 3]),
        "cu_seqlens": [0, 1, 4],
        "labels": torch.tensor([True, False]),
        "ref_logps": torch.zeros(2),
        "loss_type": "apo_zero_unpaired",
    }
    return inputs | changes


WRONG_HEADS = {
    "targets elsewhere": ({"targets": torch.zeros(B, dtype=torch.int64, device="meta")}, "^targets: got 'meta'"),
    "a list of targets": ({"targets": [0, 1, 2, 3]}, "^targets: got 'list'"),
    "no vocabulary": ({"weight": torch.ones(0, 3)}, r"^weight: got \(0, 3\)"),
    "no dimension": ({"hidden": torch.ones(B, 0), "weight": torch.ones(5, 0)}, r"^weight: got \(5, 0\)"),
}
WRONG_ROWS = {
    "offsets that are floats": ({"cu_seqlens": [0, 1.0, 4]}, r"^cu_seqlens: got \[0, 1.0, 4\], expected integers"),
    "a tensor of floats": ({"cu_seqlens": torch.tensor([0.0, 1.0, 4.0])}, "^cu_seqlens: got .* expected integers"),
    "labels elsewhere": ({"labels": torch.zeros(2, dtype=torch.bool, device="meta")}, "^labels: got 'meta'"),
    "a list of ref_logps": ({"ref_logps": [0.0, 0.0]}, "^ref_logps: got 'list'"),
    "no rows to divide by": ({"num_rows": 0}, "^num_rows: got 0"),
}


@pytest.mark.parametrize("name", [*WRONG_HEADS, *WRONG_ROWS])
def test_a_head_argument_that_cannot_be_right_is_named(name):
    changes, message = (WRONG_HEADS | WRONG_ROWS)[name]
    with pytest.raises(InputError, match=message):
        fused_linear_kto(**head(**changes))
    if name in WRONG_HEADS:
        alone = {key: value for key, value in head(**changes).items() if key in ("hidden", "weight", "targets")}
        with pytest.raises(InputError, match=message):
            functools.partial(token_logprobs, **alone)()
