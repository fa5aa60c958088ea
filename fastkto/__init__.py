"""fastkto: KTO training on thumbs-up / thumbs-down feedback, fast and small, at the same loss.

`import fastkto` needs torch and the standard library; the rest is imported when it is asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "token_logprobs": "head",
    "token_stats": "head",
    "kto_loss": "losses.kto",
    "fused_linear_kto": "head",
    "KTOConfig": "config",
    "KTOTrainer": "training",
    "RowOptions": "rows",
    "normalise": "rows",
    "read_rows": "rows",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastkto' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastkto.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
