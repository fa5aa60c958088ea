"""Fixtures of every test."""

import pytest
from transformers.utils import logging


@pytest.fixture
def warnings(caplog):
    """What the package logs, the lines of transformers' loggers included."""
    logging.enable_propagation()
    with caplog.at_level("WARNING"):
        yield caplog
    logging.disable_propagation()
