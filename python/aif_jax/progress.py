"""The progress bar of long work in a terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*fields: str, console: Console | None = None, shown: bool = True) -> Progress:
    """Return a bar that disappears when it ends: description, bar, count, more fields and time left.

    A notebook gets no bar, which rich draws there with widgets only; lines that are printed stay.

    Args:
        *fields: what else stands there, such as ``{task.fields[rate]} items/s``.
        console: where it is drawn; standard error by default.
        shown: whether to draw it at all.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *map(TextColumn, fields),
        TimeRemainingColumn(),
        console=console,
        disable=not shown or console.is_jupyter,
        transient=True,
        refresh_per_second=4,
    )
