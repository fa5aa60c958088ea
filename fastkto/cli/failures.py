"""Which exceptions are answers to what the user gave, and which are bugs."""

import traceback
from pathlib import Path
from pickle import UnpicklingError

import fastkto
from fastkto.cli.options.strict import UsageError
from fastkto.errors import InputError, MissingExtra, ProcessFailed, escaped

PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Socket closed")
OURS = str(Path(fastkto.__file__).parent)


def explain(error: Exception) -> str | None:
    """The message for the user, in one line that a terminal only shows, or None for a bug.

    A ValueError or ImportError is about the input where a library raised it; where this package did, other than as an
    `InputError` or `MissingExtra`, it is a bug.
    """
    if isinstance(error, ProcessFailed):
        return "\n".join(map(escaped, str(error).splitlines()))  # its last words may be several lines
    message = _about(error)
    return None if message is None else escaped(" ".join(message.split()))


def _about(error: Exception) -> str | None:
    if isinstance(error, UsageError | InputError | MissingExtra | OSError):
        return str(error)
    if isinstance(error, RecursionError):
        return "something that was read is nested too deeply (FASTKTO_DEBUG=1 shows where)"
    if isinstance(error, UnpicklingError):
        return (
            "the optimizer's or the random state of the checkpoint holds more than tensors; a pickle can run code, so "
            "nothing of it was. Resume from another checkpoint, or start over."
        )
    if type(error).__name__ == "SafetensorError":
        return f"a file of weights is damaged: {error}"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_IS_GONE):
        return (
            f"another process of this run is gone ({str(error).splitlines()[-1]}): its own message says why, or the "
            "system's log, where it was killed. Start again with resume_from_checkpoint=true."
        )
    if isinstance(error, ValueError | ImportError):
        frames = traceback.extract_tb(error.__traceback__)
        if frames and not frames[-1].filename.startswith(OURS):
            return f"{error} (FASTKTO_DEBUG=1 shows where)"
    return None
