"""What a candidate generation must meet before anything is made of it."""

import time
from collections.abc import Callable, Mapping

from aif_jax.bundle import Bundle
from aif_jax.errors import SchedulerError
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.coverage import Coverage, CoverageGate, Tables
from aif_jax.serving.memory import Needs, check_budget
from aif_jax.serving.stages import check_versions, needs_ahead


class Gates:
    """Versions, coverage and memory of a bundle with its tables; used once.

    Args:
        bundle: the candidate's model.
        index: its item rows; they may still be filling.
        behaviours: its rows of the items in histories; likewise.
        config: settings of the engine.
        held: returns what the engine's generations need, by name.
        coverage: share of the running generation's tables that each table must have, and seconds from now in
            which it must.
        user_states: whether it will cache user states.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        RequestError: a bound is malformed.
        ConfigError: the config does not fit the bundle.

    Attributes:
        waited_s: seconds that were waited for coverage.
    """

    def __init__(
        self,
        bundle: Bundle,
        index: ItemIndex,
        behaviours: BehaviourTable,
        config: EngineConfig,
        held: Callable[[], Mapping[str, Needs]],
        coverage: tuple[float, float],
        *,
        user_states: bool = True,
    ):
        self._coverage = CoverageGate(Tables(index, behaviours), *coverage)
        # What no waiting would change comes before it.
        check_versions(bundle, index, behaviours)
        config.sizes(k_max=bundle.k_max, long_length=bundle.config.long_length)
        self._candidate = (bundle, index, behaviours)
        self._config = config
        self._held = held
        self._user_states = user_states
        self._found: Coverage | None = None
        self.waited_s = 0.0

    def wait(self, running: Callable[[], Tables], closed: Callable[[], bool]) -> None:
        """Wait for coverage of the running tables, if there is room in memory at all.

        Raises:
            PublishError: there is none.
            SchedulerError: the engine was closed meanwhile.
        """
        self._check_memory()
        began_s = time.monotonic()
        self._coverage.wait(running, closed)
        self.waited_s += time.monotonic() - began_s
        if closed():
            raise SchedulerError("the engine is closed; make a new one.")

    def passed(self, running: Tables) -> Coverage | None:
        """Return the coverage if there is enough, and room in memory; ``None`` to wait again.

        Raises:
            PublishError: there is not.
        """
        coverage = self._coverage.passed(running)
        if coverage is not None:
            self._found = coverage
            # Again: the tables may have grown during the wait.
            self._check_memory()
        return coverage

    def still(self, running: Tables) -> Coverage:
        """Return the coverage once more, because tables may have changed while the candidate was made of
        them.

        If any coverage will do, it is that of before.

        Raises:
            PublishError: there is not enough any more.
        """
        if self._coverage.open and self._found is not None:
            return self._found
        coverage = self._coverage.passed(running, last=True)
        assert coverage is not None, "it is the last look"
        return coverage

    def _check_memory(self) -> None:
        bundle, index, behaviours = self._candidate
        needs = needs_ahead(bundle, index, behaviours, self._config, user_states=self._user_states)
        check_budget(self._config.memory_budget_bytes, {"next": needs, **self._held()})
