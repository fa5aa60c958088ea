"""The packing collator against the padding one: the same rows, pairs, targets and keys, in one sequence a forward."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkto.batch import Layout, PackingCollator, PaddingCollator
from fastkto.errors import InputError

HOST = {"cu_seqlens", "row_keys", "KL_cu_seqlens", "KL_row_keys", "num_tokens"}
token = st.integers(0, 40)


@st.composite
def micro_batches(draw):
    """Rows and a max_length that cuts some of them; at most one prompt is empty, for a key of its own."""
    prompts = draw(st.lists(st.lists(token, max_size=60), min_size=2, max_size=6, unique_by=tuple))
    rows = [
        {
            "prompt_ids": x,
            "completion_ids": draw(st.lists(token, min_size=1, max_size=60)),
            "label": draw(st.booleans()),
        }
        for x in prompts
    ]
    longest = max(map(len, prompts))
    return rows, draw(st.sampled_from([None, longest + 1, longest + 7, 200]))


def contexts(sequence, prefix):
    """(tokens that a scored position may see, its position id, the token to predict) of every scored position."""
    layout, ids = Layout.of(sequence), sequence["input_ids"][0].tolist()
    positions = sequence["position_ids"][0].tolist()
    bounds = sequence[f"{prefix}cu_seqlens"]
    rows = []
    for row in range(len(bounds) - 1):
        scored = []
        start, prompt = layout.target_cu_seqlens[row], layout.prompt_lengths[row]
        tail = layout.target_tokens + layout.tail_cu_seqlens[row]
        for n in range(bounds[row], bounds[row + 1]):
            place = sequence[f"{prefix}logit_index"][n].item()
            seen = ids[start : place + 1]
            if place >= layout.target_tokens:
                assert tail <= place < layout.target_tokens + layout.tail_cu_seqlens[row + 1]
                seen = ids[start : start + prompt] + ids[tail : place + 1]
            else:
                assert start <= place < layout.target_cu_seqlens[row + 1]
            assert positions[place] == len(seen) - 1
            scored.append((seen, sequence[f"{prefix}targets"][n].item()))
        rows.append(scored)
    return rows


def contexts_padded(batch, prefix):
    length, bounds = batch[f"{prefix}input_ids"].shape[1], batch[f"{prefix}cu_seqlens"]
    rows = []
    for row in range(len(bounds) - 1):
        places = (batch[f"{prefix}logit_index"][bounds[row] : bounds[row + 1]] - row * length).tolist()
        ids = batch[f"{prefix}input_ids"][row].tolist()
        targets = batch[f"{prefix}targets"][bounds[row] : bounds[row + 1]].tolist()
        rows.append([(ids[: place + 1], target) for place, target in zip(places, targets, strict=True)])
    return rows


@settings(deadline=None, max_examples=60)
@given(micro_batches(), st.booleans(), st.sampled_from([None, 1, 30, 100, 10_000]))
def test_against_the_padding_collator(case, kl, max_tokens):
    rows, max_length = case
    packed = PackingCollator(max_length, kl=kl, max_tokens=max_tokens)(rows)
    padded = PaddingCollator(0, max_length, kl=kl)(rows)
    streams = ("", "KL_") if kl else ("",)
    for name in ["num_tokens", *(f"{prefix}{key}" for prefix in streams for key in ("row_keys", "cu_seqlens"))]:
        assert packed[name] == padded[name], name
    for name in ("label", "row_ids"):
        assert torch.equal(packed[name], padded[name])
    for prefix in streams:
        ours = [row for sequence in packed["sequences"] for row in contexts(sequence, prefix)]
        assert ours == contexts_padded(padded, prefix)
    assert any(key.startswith("KL_") for key in (*packed, *packed["sequences"][0])) == kl


@settings(deadline=None, max_examples=60)
@given(micro_batches(), st.booleans(), st.sampled_from([None, 1, 30, 100]))
def test_every_token_once_and_nothing_else(case, kl, max_tokens):
    rows, max_length = case
    batch = PackingCollator(max_length, kl=kl, max_tokens=max_tokens)(rows)
    cut = [(row["prompt_ids"] + row["completion_ids"])[:max_length] for row in rows]
    targets = []
    for sequence in batch["sequences"]:
        layout, ids = Layout.of(sequence), sequence["input_ids"][0]
        assert ids.dtype == sequence["position_ids"].dtype == sequence["logit_index"].dtype == torch.int64
        assert ids.numel() == layout.target_tokens + layout.kl_tokens
        assert (layout.kl_tokens > 0) == kl
        assert max_tokens is None or len(layout.prompt_lengths) == 1 or ids.numel() <= max_tokens
        for offsets, bounds in (
            (layout.device_target_cu_seqlens, layout.target_cu_seqlens),
            (layout.device_tail_cu_seqlens, layout.tail_cu_seqlens),
        ):
            assert offsets.dtype == torch.int32
            assert offsets.tolist() == bounds
        keys = layout.tail_key_index.split(layout.device_tail_key_cu_seqlens.diff().tolist())
        for row, places in enumerate(keys):
            start, tail = layout.target_cu_seqlens[row], layout.target_tokens + layout.tail_cu_seqlens[row]
            prompt = list(range(start, start + layout.prompt_lengths[row]))
            assert places.tolist() == (prompt + list(range(tail, tail + layout.kl_lengths[row])) if kl else [])
        targets += ids[: layout.target_tokens].split(layout.target_lengths)
    assert [ids.tolist() for ids in targets] == cut
    for a, b in zip(batch["sequences"], batch["sequences"][1:], strict=False):  # a split is needed, not only allowed
        first = Layout.of(b)
        assert a["input_ids"].numel() + first.target_lengths[0] + first.kl_lengths[0] > max_tokens


def test_a_row_longer_than_the_limit_is_a_forward_of_its_own():
    rows = [{"prompt_ids": [i] * n, "completion_ids": [9] * 5, "label": True} for i, n in enumerate([1, 50, 2, 3])]
    batch = PackingCollator(None, max_tokens=30)(rows)
    assert [s["prompt_lengths"] for s in batch["sequences"]] == [[1], [50], [2, 3]]


def test_errors_are_those_of_the_padding_collator():
    row = {"prompt_ids": [1], "completion_ids": [2], "label": True, "row_id": 7}
    with pytest.raises(InputError, match="rows of a micro-batch: got 1"):
        PackingCollator(8)([row])
    assert PackingCollator(8, kl=False)([row])["row_ids"].tolist() == [7]
    with pytest.raises(InputError, match="rows"):
        PackingCollator(8)([])
    with pytest.raises(InputError, match="max_length"):
        PackingCollator(1, kl=False)([row])


def test_tensors_travel_and_the_host_keeps_what_it_reads():
    from accelerate.utils import send_to_device

    rows = [{"prompt_ids": [i], "completion_ids": [5], "label": True} for i in range(3)]
    collator = pickle.loads(pickle.dumps(PackingCollator(8)))
    moved = send_to_device(collator(rows), torch.device("meta"))
    on_host = {"cu_seqlens", "KL_cu_seqlens", "target_cu_seqlens", "prompt_lengths", "tail_cu_seqlens"}
    for part, host in ((moved, HOST | {"sequences"}), (moved["sequences"][0], on_host)):
        assert {key for key, value in part.items() if not isinstance(value, torch.Tensor)} == host
        assert all(value.is_meta for value in part.values() if isinstance(value, torch.Tensor))
    assert moved["sequences"][0]["target_cu_seqlens"] == [0, 2, 4, 6]
