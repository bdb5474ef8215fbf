import warnings

import pytest
from rich.console import Console

from aif_jax.progress import progress_bar


@pytest.mark.parametrize("notebook", [False, True])
def test_progress_bar_notebook_gets_lines_without_bar_or_warning(notebook: bool) -> None:
    console = Console(force_jupyter=notebook, force_terminal=not notebook)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress_bar(console=console) as bar:
            bar.add_task("training", total=3)
            assert bar.live.is_started is not notebook
