"""How the axes of a tensor are merged and split by a reshape."""

from __future__ import annotations

from tightfit_service.graph.structure import Shape


def matching_axes(source: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """Return the finest division of two shapes of equal size into runs of axes of equal product.

    Sizes must be positive.
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        ins, outs = [i], [j]
        in_size, out_size = source[i], target[j]
        i, j = i + 1, j + 1
        while in_size != out_size:
            if in_size < out_size:
                in_size *= source[i]
                ins.append(i)
                i += 1
            else:
                out_size *= target[j]
                outs.append(j)
                j += 1
        runs.append((ins, outs))
    # what is left on one side are axes of size 1
    if i < len(source) or j < len(target):
        if not runs:
            runs.append(([], []))
        runs[-1][0].extend(range(i, len(source)))
        runs[-1][1].extend(range(j, len(target)))
    return runs
