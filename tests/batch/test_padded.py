"""The collator against a per-row oracle and against TRL's: ragged rows, empty prompts, cuts."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkto.batch.padded import PaddedBatch, PaddingCollator
from fastkto.batch.targets_and_kl import row_key
from fastkto.errors import InputError
from fastkto.pairs import pair
from fastkto.rows.tokens import prompt_key

PAD = 99
token = st.integers(0, 40)


@st.composite
def micro_batches(draw, max_length):
    row = st.tuples(st.lists(token, max_size=max_length - 1), st.lists(token, min_size=1, max_size=8), st.booleans())
    rows = draw(st.lists(row, min_size=2, max_size=6, unique_by=lambda r: tuple(r[0])))
    return [{"prompt_ids": x, "completion_ids": y, "label": label} for x, y, label in rows]


def scored_pairs(prompt, completion, max_length):
    """(context, token) for every scored token, one at a time."""
    ids = (prompt + completion)[:max_length]
    return [(ids[:t], ids[t]) for t in range(max(1, len(prompt)), len(ids))]


@settings(deadline=None)
@given(micro_batches(6), st.booleans(), st.sampled_from([None, 1, 4]))
def test_against_one_row_at_a_time(rows, kl, multiple):
    batch = PaddingCollator(PAD, 6, kl=kl, pad_to_multiple_of=multiple)(rows)
    donors = pair([prompt_key(row["prompt_ids"]) for row in rows])
    streams = {"": list(range(len(rows)))} | ({"KL_": donors} if kl else {})
    for prefix, sources in streams.items():
        ids_BL, mask_BL = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"].bool()
        bounds, index, targets = (batch[f"{prefix}{key}"] for key in ("cu_seqlens", "logit_index", "targets"))
        assert ids_BL.dtype == index.dtype == targets.dtype == torch.int64
        assert ids_BL.shape[1] % (multiple or 1) == 0
        length = ids_BL.shape[1]
        for i, source in enumerate(sources):
            x, y = rows[i]["prompt_ids"], rows[source]["completion_ids"]
            assert ids_BL[i, mask_BL[i]].tolist() == (x + y)[:6]
            assert (ids_BL[i, ~mask_BL[i]] == PAD).all()
            assert mask_BL[i].long().diff().le(0).all()
            places = index[bounds[i] : bounds[i + 1]]
            assert all(i * length <= place < (i + 1) * length for place in places.tolist())
            contexts = [ids_BL[i, : place - i * length + 1].tolist() for place in places.tolist()]
            got = list(zip(contexts, targets[bounds[i] : bounds[i + 1]].tolist(), strict=True))
            assert got == scored_pairs(x, y, 6)
            assert batch[f"{prefix}row_keys"][i] == row_key(x, y[: 6 - len(x)])
    assert batch["label"].tolist() == [row["label"] for row in rows]
    assert kl == ("KL_input_ids" in batch)
    assert batch["num_tokens"] == batch["attention_mask"].sum()
    assert {*batch} <= {*PaddedBatch.__annotations__}


@settings(deadline=None)
@given(micro_batches(6), st.sampled_from([None, 8]), st.sampled_from([6, None]))
def test_tensors_are_trls(rows, multiple, max_length):
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    completions = [row["completion_ids"] for row in rows]
    theirs = DataCollatorForUnpairedPreference(PAD, max_length=max_length, pad_to_multiple_of=multiple)(
        [row | {"KL_completion_ids": y} for row, y in zip(rows, [completions[-1], *completions[:-1]], strict=True)]
    )
    ours = PaddingCollator(PAD, max_length, pad_to_multiple_of=multiple)(rows)
    for key in theirs.keys() - {"completion_mask", "KL_completion_mask"}:  # ours are logit_index and targets
        value = theirs[key]
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value), key


def test_the_two_completions_of_a_prompt_and_the_turns_of_a_conversation_are_never_paired():
    def kl_completions(rows):
        batch = PaddingCollator(PAD, 8)(rows)
        return [targets.tolist() for targets in batch["KL_targets"].split(1)]

    twins = [{"prompt_ids": [i // 2], "completion_ids": [10 + i], "label": True} for i in range(4)]
    assert kl_completions(twins) == [[12], [13], [10], [11]]
    keyed = [row | {"prompt_ids": [i], "prompt_key": i // 2} for i, row in enumerate(twins)]
    assert kl_completions(keyed) == [[12], [13], [10], [11]]
    turns = [row | {"prompt_ids": [i], "conversation": i // 2} for i, row in enumerate(twins)]
    assert kl_completions(turns) == [[12], [13], [10], [11]]


def test_no_row_is_alone_or_empty():
    row = {"prompt_ids": [1], "completion_ids": [2], "label": True, "row_id": 7}
    with pytest.raises(InputError, match=r"rows of a micro-batch: got 1, .*max_tokens_per_forward"):
        PaddingCollator(PAD, 8)([row])
    assert PaddingCollator(PAD, 8, kl=False)([row])["row_ids"].tolist() == [7]
    with pytest.raises(InputError, match="rows"):
        PaddingCollator(PAD, 8)([])
    for bad in ({"prompt_ids": [1] * 8}, {"completion_ids": []}):
        with pytest.raises(InputError, match="max_length"):
            PaddingCollator(PAD, 8, kl=False)([row | bad])


def test_keys_depend_on_content_alone():
    assert row_key([1], [2, 3]) == row_key((1,), (2, 3))
    assert len({row_key(*ids) for ids in (([1], [2]), ([1, 2], []), ([], [1, 2]), ([2], [1]), ([1], [2, 0]))}) == 5
    assert len(row_key([1], [2])) == 16
    rows = [{"prompt_ids": [i], "completion_ids": [5, 6, 7], "label": True} for i in range(3)]
    cut, whole = (PaddingCollator(PAD, n)(rows)["row_keys"] for n in (3, 9))
    assert cut[0] == row_key([0], [5, 6]) != whole[0]


def test_what_stays_on_the_host_survives_accelerate():
    from accelerate.utils import send_to_device

    rows = [{"prompt_ids": [i], "completion_ids": [5], "label": True} for i in range(3)]
    batch = PaddingCollator(PAD, 8)(rows)
    moved = send_to_device(batch, torch.device("meta"))
    host = {key for key, value in moved.items() if not isinstance(value, torch.Tensor)}
    assert host == {"cu_seqlens", "row_keys", "KL_cu_seqlens", "KL_row_keys", "num_tokens"}
    assert moved["cu_seqlens"] == [0, 1, 2, 3]
    assert moved["row_keys"] == batch["row_keys"]
    assert all(value.is_meta for key, value in moved.items() if key not in host)
    assert pickle.loads(pickle.dumps(PaddingCollator(PAD, 8)))(rows)["cu_seqlens"] == [0, 1, 2, 3]
