"""The assignment problem: rows to columns, one to one, at the least cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row of cost [n, n] its column, each used once, so that the sum of the costs is least.

    Shortest augmenting paths (Jonker and Volgenant 1987, Computing 38, 325-340): rows come in one by one, and each
    makes room for itself along the cheapest chain of moves; the prices of rows and columns keep every reduced cost at 0
    or above. O(n^3), a few milliseconds for 64 rows. All costs must be finite.
    """
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n)
    owner = np.full(n, -1)  # of each column: its row
    for row in range(n):
        distance = np.full(n, np.inf)  # of the cheapest chain from `row` to each column
        before = np.full(n, -1)  # the column that comes before each on that chain
        reached = np.zeros(n, bool)
        at, column, length = row, -1, 0.0
        while True:
            through = length + cost[at] - row_price[at] - column_price
            nearer = ~reached & (through < distance)
            distance[nearer], before[nearer] = through[nearer], column
            column = int(np.argmin(np.where(reached, np.inf, distance)))
            length, reached[column] = distance[column], True
            if owner[column] < 0:
                break
            at = int(owner[column])
        # Prices: every column that was reached gets cheaper by what the chain's end was farther away.
        column_price[reached] -= length - distance[reached]
        row_price[row] += length
        moved = reached & (owner >= 0)
        row_price[owner[moved]] += length - distance[moved]
        while column >= 0:
            last = int(before[column])
            owner[column] = row if last < 0 else owner[last]
            column = last
    answer = np.empty(n, np.int64)
    answer[owner] = np.arange(n)
    return answer
