"""A disk that is full, as the system itself says it: no file may grow past so many bytes."""

import resource


class FullDisk:
    """Inside the block a write past `size` bytes of a file fails, in this process."""

    def __init__(self, size: int) -> None:
        self.size, self.before = size, resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> "FullDisk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))
        return self

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
