"""A mixed-integer linear program built up row by row, and solved by HiGHS."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Columns = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


class ProgramStatus(enum.StrEnum):
    """How solving a program ended."""

    OPTIMAL = "optimal"
    """Proven to be within the asked gap of the best."""
    FEASIBLE = "feasible"
    """Time ran out; `values` is the best found."""
    INFEASIBLE = "infeasible"
    """Proven that nothing meets all rows."""
    UNKNOWN = "unknown"
    """Time ran out before a solution or a proof."""


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """Outcome of `LinearProgram.minimise`; `values` has one entry per column, or is None."""

    status: ProgramStatus
    values: Vector | None


class LinearProgram:
    """Columns with bounds and costs, and two-sided rows over them. Not for several threads."""

    def __init__(self) -> None:
        self._upper: list[Vector] = []
        self._integral: list[npt.NDArray[np.int64]] = []
        self._column_count = 0
        self._cost: dict[int, float] = {}
        self._columns: list[Columns] = []
        self._coefficients: list[Vector] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def add_columns(self, count: int, *, integral: bool, upper: float = 1.0) -> Columns:
        """Add `count` variables in [0, upper] and return their column numbers."""
        first = self._column_count
        self._column_count += count
        self._upper.append(np.full(count, upper))
        self._integral.append(np.full(count, int(integral), dtype=np.int64))
        return np.arange(first, first + count, dtype=np.int64)

    def add_row(
        self,
        columns: Columns | Sequence[int],
        coefficients: Vector | Sequence[float],
        *,
        low: float = -np.inf,
        high: float = np.inf,
    ) -> None:
        """Demand low <= sum(coefficients * columns) <= high; repeated columns add up."""
        self._columns.append(np.asarray(columns, dtype=np.int64))
        self._coefficients.append(np.asarray(coefficients, dtype=np.float64))
        self._low.append(low)
        self._high.append(high)

    def add_cost(
        self, columns: Columns | Sequence[int], coefficients: Vector | Sequence[float]
    ) -> None:
        """Add sum(coefficients * columns) to what is minimised."""
        for column, coefficient in zip(columns, coefficients, strict=True):
            self._cost[int(column)] = self._cost.get(int(column), 0.0) + float(coefficient)

    def minimise(self, *, time_limit_seconds: float, relative_gap: float) -> ProgramResult:
        """Solve. The same program gives the same result unless the time limit cuts it short."""
        cost = np.zeros(self._column_count)
        for column, coefficient in self._cost.items():
            cost[column] = coefficient
        # Once in some thousand small programs HiGHS gives up after its own presolve; without it, it does not.
        for presolve in (True, False):
            outcome = milp(
                cost,
                integrality=np.concatenate(self._integral),
                bounds=Bounds(0.0, np.concatenate(self._upper)),
                constraints=LinearConstraint(self._matrix(), self._low, self._high),
                options={
                    "time_limit": time_limit_seconds,
                    "mip_rel_gap": relative_gap,
                    "presolve": presolve,
                },
            )
            # scipy's codes: 0 optimal, 1 time or iteration limit, 2 infeasible, 3 unbounded, 4 other.
            if outcome.status != 4:
                break
        if outcome.status == 2:
            return ProgramResult(status=ProgramStatus.INFEASIBLE, values=None)
        if outcome.x is None:
            return ProgramResult(status=ProgramStatus.UNKNOWN, values=None)
        status = ProgramStatus.OPTIMAL if outcome.status == 0 else ProgramStatus.FEASIBLE
        return ProgramResult(status=status, values=np.asarray(outcome.x, dtype=np.float64))

    def _matrix(self) -> sparse.csr_array:
        rows = np.repeat(np.arange(len(self._columns)), [len(c) for c in self._columns])
        entries = (np.concatenate(self._coefficients), (rows, np.concatenate(self._columns)))
        return sparse.csr_array(
            sparse.coo_array(entries, shape=(len(self._columns), self._column_count))
        )
