"""When the requests of an open loop are sent: drawn from a seed before the run, so that the load waits for nothing."""

from collections.abc import Iterator

import numpy as np

from mixtral_client.bench.result import OpenLoad

DEFAULT_BURSTINESS = 0.25
_BLOCK = 256  # gaps drawn at a time


def arrival_times(load: OpenLoad) -> Iterator[float]:
    """Seconds from the start of the point to each arrival, ascending without end. The first is at 0.

    The gaps are independent with mean 1/rate: constant, exponential (Poisson arrivals), or for bursty arrivals of a
    gamma distribution with shape `burstiness` and scale 1 / (rate * burstiness). Their coefficient of variation is
    1 / sqrt(burstiness): 1 for Poisson (the same as burstiness 1), 2 for the default burstiness of 0.25.
    """
    if load.arrivals == "constant":
        # Products, not a sum, so that rounding does not add up.
        index = 0
        while True:
            yield index / load.rate
            index += 1
    random = np.random.default_rng(load.seed)
    at = 0.0
    while True:
        if load.arrivals == "poisson":
            gaps = random.exponential(1 / load.rate, _BLOCK)
        else:
            shape = DEFAULT_BURSTINESS if load.burstiness is None else load.burstiness
            gaps = random.gamma(shape, 1 / (load.rate * shape), _BLOCK)
        for gap in gaps.tolist():
            yield at
            at += gap
