"""Text with half a character in it, as JSON from a browser may hold it."""

import logging
from typing import Any

from fastkto.rows.labels import warn_once

logger = logging.getLogger(__name__)


def whole_characters(value: Any) -> Any:
    """`value` with every lone surrogate read as U+FFFD, which is said once."""
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    if not isinstance(value, str) or value.isascii():
        return value
    whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if whole != value:
        warn_once(logger, "Text with half a character (a lone surrogate) was found; each is read as U+FFFD.")
    return whole
