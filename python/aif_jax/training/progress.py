"""Progress of a training run in a terminal."""

from typing import Self

from rich.progress import TaskID

from aif_jax.progress import progress_bar


class Reporter:
    """A progress bar with loss, speed and time left, and a line for each epoch.

    Args:
        shown: whether to show anything.
        title: what is trained on what.
    """

    def __init__(self, shown: bool, title: str) -> None:
        self._title, self._shown = title, shown
        fields = "loss {task.fields[loss]}", "{task.fields[rate]} examples/s", "{task.fields[note]}"
        self._progress = progress_bar(*fields, shown=shown)
        self._task: TaskID | None = None
        self._examples = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, total: int, done: int) -> None:
        """Show the bar of a run of `total` steps, `done` of which were made before."""
        self._task = self._progress.add_task(
            self._title, total=total, completed=done, loss="-", rate="-", note="compiling"
        )

    def advance(self, examples: int, loss: float | None) -> None:
        """Count a step of some examples; `loss` is that of a step a little earlier."""
        if self._task is None or not self._shown:
            return
        self._examples += examples
        self._progress.advance(self._task)
        if loss is not None:
            elapsed = self._progress.tasks[0].elapsed or 0.0
            rate = f"{self._examples / elapsed:,.0f}" if elapsed else "-"
            self._progress.update(self._task, loss=f"{loss:.4f}", rate=rate, note="")

    def note(self, words: str) -> None:
        """Show what else is running, such as validation."""
        if self._task is not None:
            self._progress.update(self._task, note=words)

    def line(self, words: str) -> None:
        """Print a line that stays."""
        if self._shown:
            self._progress.console.print(f"{self._title}: {words}", highlight=False, markup=False)
