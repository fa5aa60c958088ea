"""fastkto: KTO training on thumbs-up / thumbs-down feedback, fast and small, at the same loss.

`import fastkto` needs torch and the standard library; the rest is imported when it is asked for. A public name stands
in four places, which a test compares: the imports that type checkers read, `_ROOMS`, `__all__` and docs/api.md.

The way of a row: rows -> pairs -> batch -> trunk -> head -> step -> training; each folder opens with what is in it.
`config` has the settings, `errors` the form of every message, `installation` how to add to what is installed, `engines`
what FSDP and DeepSpeed need, `disk` what a full or read-only disk says.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastkto.config import KTOConfig
    from fastkto.head import fused_linear_kto, token_logprobs, token_stats
    from fastkto.losses import kto_loss
    from fastkto.rows import RowOptions, normalise, read_rows
    from fastkto.training import KTOTrainer

    __version__: str

__all__ = [
    "KTOConfig",
    "KTOTrainer",
    "RowOptions",
    "__version__",
    "fused_linear_kto",
    "kto_loss",
    "normalise",
    "read_rows",
    "token_logprobs",
    "token_stats",
]

_ROOMS = {
    "KTOConfig": "config",
    "KTOTrainer": "training",
    "RowOptions": "rows",
    "fused_linear_kto": "head",
    "kto_loss": "losses",
    "normalise": "rows",
    "read_rows": "rows",
    "token_logprobs": "head",
    "token_stats": "head",
}


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # to a type checker a misspelt name would be Any

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return importlib.import_module("fastkto.installation").version()
        if name not in _ROOMS:
            raise AttributeError(f"module 'fastkto' has no attribute {name!r}")
        return getattr(importlib.import_module(f"fastkto.{_ROOMS[name]}"), name)
