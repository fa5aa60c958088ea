"""The packed sequence that the trunk's opening shows, on a model: who attends to whom, and what has a graph."""

import re

import pytest
import torch
from tiny import tiny_llama

import fastkto.trunk
from fastkto.batch import Layout, PackingCollator
from fastkto.trunk.layer_split import packed_forward

ROWS = [
    {"prompt_ids": [10, 11], "completion_ids": [12], "label": True},
    {"prompt_ids": [20], "completion_ids": [21, 22], "label": False},
]
TOKENS = {"x1": [10, 11], "y1": [12], "x2": [20], "y2": [21, 22], "y'1": [21, 22], "y'2": [12]}


@pytest.fixture(scope="module")
def shown():
    """The lines of the picture, by their names."""
    lines = re.findall(r"^ {8}([a-z ]+?)  +(.+)$", fastkto.trunk.__doc__, re.MULTILINE)
    return {name: cells.replace("|", " ").split() for name, cells in lines}


@pytest.fixture(scope="module")
def sequence():
    (sequence,) = PackingCollator(max_length=None)(ROWS)["sequences"]
    return sequence


@pytest.fixture(scope="module")
def hidden():
    """(T, D) hidden states of a random model, of a sequence's ids or of others."""
    model = tiny_llama().double()

    def hidden(sequence, ids=None):
        ids = sequence["input_ids"] if ids is None else ids
        positions = sequence["position_ids"]
        outputs = packed_forward(Layout.of(sequence), model.base_model, input_ids=ids, position_ids=positions)
        return outputs.last_hidden_state[0]

    hidden.embedding = model.get_input_embeddings().weight
    return hidden


def test_tokens_and_positions(shown, sequence):
    assert shown["place"] == [str(place) for place in range(9)]
    in_order = {name: iter(ids) for name, ids in TOKENS.items()}
    assert [next(in_order[name]) for name in shown["token"]] == sequence["input_ids"][0].tolist()
    assert [int(position) for position in shown["position"]] == sequence["position_ids"][0].tolist()


def test_who_attends_to_whom(shown, sequence, hidden):
    with torch.no_grad():
        before = hidden(sequence)
        seen = [""] * len(before)
        for place in range(len(before)):
            ids = sequence["input_ids"].clone()
            ids[0, place] += 20
            changed = (hidden(sequence, ids) - before).abs().amax(1) > 1e-9
            for other in changed.nonzero()[:, 0].tolist():
                seen[other] += str(place)
    assert seen == shown["attends to"]


def test_what_has_a_graph(shown, sequence, hidden):
    states = hidden(sequence)
    gradients = [torch.autograd.grad(state.sum(), hidden.embedding, retain_graph=True)[0] for state in states]
    assert ["yes" if gradient.any() else "no" for gradient in gradients] == shown["graph"]
