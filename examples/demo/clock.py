"""Wall and CPU seconds by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock("train"): ...` fills `clock.phases["train"]`, in seconds; CPU time is that of all threads."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        self.phases[phase] = {key: round(seconds, 2) for key, seconds in spent.items()}

    def total(self) -> dict[str, float]:
        """The phases' sum."""
        return {key: round(sum(spent[key] for spent in self.phases.values()), 2) for key in ("wall", "cpu")}
