"""Which exceptions are answers to what the user gave, and which are bugs."""

import traceback
from pathlib import Path

import fastkto
from fastkto.cli.strict import UsageError
from fastkto.errors import InputError, MissingExtra

OURS = str(Path(fastkto.__file__).parent)


def explain(error: Exception) -> str | None:
    """The message for the user, or None for a bug.

    A ValueError or ImportError is about the input where a library raised it; where this package did, other than as an
    `InputError` or `MissingExtra`, it is a bug.
    """
    if isinstance(error, UsageError | InputError | MissingExtra | OSError):
        return str(error)
    if type(error).__name__ == "SafetensorError":
        return f"a file of weights is damaged: {error}"
    if isinstance(error, ValueError | ImportError):
        frames = traceback.extract_tb(error.__traceback__)
        if frames and not frames[-1].filename.startswith(OURS):
            return f"{error} (FASTKTO_DEBUG=1 shows where)"
    return None
