"""Python's own profile of each action."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fulgur.profilers.profiler import ActionError, Profiler

if TYPE_CHECKING:
    import cProfile


class AdvancedProfiler(Profiler):
    """Runs cProfile for each action and reports the functions that took most time. Slows Python code down.

    Python profiles one action at a time: what an action does within another is counted for the inner one alone.

    Args:
        dirpath: As in `Profiler`.
        filename: As in `Profiler`.
        line_count_restriction: How much of each profile to report: a number of lines, or a fraction of them.
        dump_stats: Whether to write each profile to a ``.prof`` file too.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._running: list[str] = []

    def start(self, action_name: str) -> None:
        """Begin to profile; an outer action waits until the end of this one."""
        import cProfile

        if self._running:
            self.profiled_actions[self._running[-1]].disable()
        self._running.append(action_name)
        self.profiled_actions.setdefault(action_name, cProfile.Profile()).enable()

    def stop(self, action_name: str) -> None:
        """End what `start` began.

        Raises:
            ValueError: The action is not the one that was started last.
        """
        if not self._running or self._running[-1] != action_name:
            raise ActionError(action_name, is_running=False)
        self.profiled_actions[action_name].disable()
        self._running.pop()
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def summary(self) -> str:
        """The profiles as text, one after another, each sorted by cumulative time."""
        import io
        import pstats

        parts = [f"{self._stage.upper()} Profiler Report".strip()]
        for name, profile in self.profiled_actions.items():
            if self.dump_stats:
                self._dump(name, profile)
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(self.line_count_restriction)
            parts.append(f"Profile stats for: {name}\n{text.getvalue()}")
        return "\n".join(parts)

    def _dump(self, action_name: str, profile: cProfile.Profile) -> None:
        own = self.filename
        self.filename = "-".join(part for part in (own, action_name) if part)
        profile.dump_stats(self._path("prof"))
        self.filename = own
