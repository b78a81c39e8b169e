"""Search for the highest rate that meets the SLO."""

import math
from collections.abc import Callable


def highest_rate(low: float, high: float, tolerance: float, meets: Callable[[float], bool]) -> float | None:
    """The highest rate found at which `meets` is true, None if it is false even at `low`.

    Bisection on a logarithmic scale, taking it that whoever meets the limits at one rate meets them below it; ends when
    the rates that meet and do not meet them are closer than a factor of 1 + tolerance.
    """
    if not meets(low):
        return None
    if meets(high):
        return high
    good, bad = low, high
    while bad / good > 1 + tolerance:
        middle = math.sqrt(good * bad)
        if meets(middle):
            good = middle
        else:
            bad = middle
    return good
