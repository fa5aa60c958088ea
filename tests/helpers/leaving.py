"""How a rank of a test ends."""

import os
import sys

import torch


def leave_group() -> None:
    """End this process once all ranks have come here.

    Not by destroy_process_group: with a trainer still alive the last reference to gloo goes while Python's lock is
    held, and gloo then waits for a thread of its own that waits for the lock (seen with torch 2.11 and 2.13).
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
