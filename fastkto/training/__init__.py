"""The trainer on Hugging Face's Trainer, what it loads and prepares, and what it does when something goes wrong."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkto.training.trainer import KTOTrainer

__all__ = ["KTOTrainer"]


def __getattr__(name: str) -> Any:
    """The trainer, when it is asked for: it imports `tools.plan`, which imports parts of this room."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastkto.training.trainer import KTOTrainer

    return KTOTrainer
