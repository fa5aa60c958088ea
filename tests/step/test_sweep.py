"""A sample of `make families`: one of each way that a family may run."""

import pytest
from sweep import LIMIT, try_family

WAYS = {
    "llama": "packed",
    "llama4_text": "packed",
    "bloom": "padded",
    "gpt_oss": "padded",
    "cpmant": "refused",
    "recurrent_gemma": "padded",
    "xlstm": "padded",
}


@pytest.mark.parametrize("name", WAYS)
def test_a_family_runs_the_way_that_is_right(name):
    found = try_family(name)
    assert found["way"] == WAYS[name], found
    assert max(found.get("nats", 0), found.get("gradients", 0)) < LIMIT
