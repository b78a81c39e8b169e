"""The figures of one point, from its requests alone. Times in seconds, counts as the server gave them.

Times of a request. `start` is scheduled_s in an open loop, so that time lost before sending counts too (no coordinated
omission), and sent_s in a closed loop. t_1 … t_m are the arrivals of its m responses that brought tokens, n_1 … n_m
their tokens; a response brings several when the server coalesced them, and when these were made is not known.

* TTFT = t_1 - start.
* TPOT = (t_m - t_1) / (n_2 + … + n_m). None when m is 1 or all responses came at the same instant. The tokens of the
  first response but its last were made before the clock of TPOT starts, so they are not counted.
* gaps = t_2 - t_1, …, t_m - t_(m-1): one per response, not one per token. A response of n tokens after a gap g is one
  gap of g. All gaps of all measured requests form one distribution.
* E2E = end_s - start.
* perceived tokens/s = (1 + n_2 + … + n_m) / (t_m - t_1): the output tokens over the time from first to last token. The
  first response counts as one token, which it is unless the server coalesced there. None where TPOT is.

Distributions are over the measured requests that completed; failed ones are in `errors`. Percentiles interpolate
linearly between the two nearest ranks (numpy's default).

Measured are the requests after warm-up that were sent (open loop: scheduled) before the window ended. Those that end
after it keep their whole latency: leaving them out would prefer short ones.

The window is the steady state. Closed loop: from the moment when all workers have a request running and the first one
after warm-up is sent, until the first worker finds nothing more to send. Open loop: from the first arrival after
warm-up to the last scheduled arrival.

Rates count what happened inside the window, whichever request it belongs to, over the window's length: output tokens
that arrived in it, prompt tokens of requests whose first token arrived in it, requests that completed in it. So neither
the ramp nor the tail dilutes them. A window of no length has rates 0.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mixtral_client.bench.result import (
    INTERRUPTED,
    ClosedLoad,
    Cost,
    Dist,
    Load,
    PerGpu,
    RequestRecord,
    Summary,
)


def distribution(values: Iterable[float]) -> Dist:
    """Mean, percentiles and maximum of the values."""
    array = np.fromiter(values, np.float64)
    if array.size == 0:
        return Dist(None, None, None, None, None, None, 0)
    p50, p90, p95, p99 = np.percentile(array, (50, 90, 95, 99)).tolist()
    return Dist(float(array.mean()), p50, p90, p95, p99, float(array.max()), int(array.size))


def start_s(record: RequestRecord, load: Load) -> float:
    """When the clock of a request's latencies starts."""
    return record.sent_s if isinstance(load, ClosedLoad) else record.scheduled_s


def ttft_s(record: RequestRecord, load: Load) -> float | None:
    return None if record.first_s is None else record.first_s - start_s(record, load)


def e2e_s(record: RequestRecord, load: Load) -> float:
    return record.end_s - start_s(record, load)


def tpot_s(record: RequestRecord) -> float | None:
    streamed = _streamed(record)
    return None if streamed is None else streamed[0] / streamed[1]


def perceived_tokens_per_s(record: RequestRecord) -> float | None:
    streamed = _streamed(record)
    return None if streamed is None else (1 + streamed[1]) / streamed[0]


def gaps_s(record: RequestRecord) -> list[float]:
    times = [at for at, _ in record.responses]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _streamed(record: RequestRecord) -> tuple[float, int] | None:
    """(time from first to last response, tokens after the first response), None where there is no such time."""
    if len(record.responses) < 2:
        return None
    elapsed = record.responses[-1][0] - record.responses[0][0]
    tokens = sum(tokens for _, tokens in record.responses[1:])
    return (elapsed, tokens) if elapsed > 0 and tokens > 0 else None


def steady_window(records: Sequence[RequestRecord], load: Load, dry_s: float | None) -> tuple[float, float]:
    """The window by the rule of this module's head.

    records: all requests of the point; `measured` must say of each whether it comes after the warm-up. dry_s: closed
    loop: when the first worker found nothing more to send, None if that never came (the run was stopped; then the
    window ends with the last thing that happened).
    """
    measured = [record for record in records if record.measured]
    if not measured:
        return (0.0, 0.0)
    if not isinstance(load, ClosedLoad):
        arrivals = [record.scheduled_s for record in measured]
        return (min(arrivals), max(arrivals))
    sent = sorted(record.sent_s for record in records)
    full = sent[min(load.concurrency, len(sent)) - 1]
    start = max(full, min(record.sent_s for record in measured))
    end = max(record.end_s for record in records) if dry_s is None else dry_s
    return (start, max(start, end))


def mark_measured(records: Sequence[RequestRecord], load: Load, window: tuple[float, float]) -> list[RequestRecord]:
    """The records in order of their index, with the final `measured`: after warm-up, sent before the window ended, and
    not cut off by the user's interrupt."""

    def measured(record: RequestRecord) -> bool:
        interrupted = record.error is not None and record.error.kind == INTERRUPTED
        return record.measured and not interrupted and start_s(record, load) <= window[1]

    return [replace(record, measured=measured(record)) for record in sorted(records, key=lambda record: record.index)]


def summarise(
    records: Sequence[RequestRecord],
    load: Load,
    window: tuple[float, float],
    *,
    gpus: int | None = None,
    price: tuple[float, float] | None = None,
    good_requests: int | None = None,
) -> Summary:
    """The point's summary. gpus: for rates per GPU. price: (per hour, output price ratio). good_requests: how many of
    the measured requests are within every limit of the SLO."""
    measured = [record for record in records if record.measured]
    completed = [record for record in measured if record.error is None]
    start, end = window
    length = end - start

    def rate(count: int) -> float:
        return count / length if length > 0 else 0.0

    def inside(at: float | None) -> bool:
        return at is not None and start <= at <= end

    ended = [record for record in records if record.error is None and inside(record.end_s)]
    output_rate = rate(sum(tokens for record in records for at, tokens in record.responses if inside(at)))
    input_rate = rate(sum(record.input_tokens for record in records if inside(record.first_s)))
    return Summary(
        ttft_s=distribution(value for record in completed if (value := ttft_s(record, load)) is not None),
        tpot_s=distribution(value for record in completed if (value := tpot_s(record)) is not None),
        gap_s=distribution(gap for record in completed for gap in gaps_s(record)),
        e2e_s=distribution(e2e_s(record, load) for record in completed),
        perceived_tokens_per_s=distribution(
            value for record in completed if (value := perceived_tokens_per_s(record)) is not None
        ),
        requests_per_s=rate(len(ended)),
        input_tokens_per_s=input_rate,
        output_tokens_per_s=output_rate,
        total_tokens_per_s=input_rate + output_rate,
        per_gpu=None if gpus is None else per_gpu(gpus, rate(len(ended)), input_rate, output_rate),
        completed=len(completed),
        errors=dict(Counter(record.error.kind for record in measured if record.error is not None)),
        goodput_requests_per_s=None
        if good_requests is None
        else goodput(rate(len(ended)), good_requests, len(completed)),
        cost=None if price is None else cost(*price, input_rate, output_rate),
    )


def goodput(requests_per_s: float, good_requests: int, completed: int) -> float:
    """The completed requests per second that are within the limits: the rate times their share of the measured ones."""
    return requests_per_s * good_requests / completed if completed else 0.0


def per_gpu(gpus: int, requests_per_s: float, input_tokens_per_s: float, output_tokens_per_s: float) -> PerGpu:
    total = input_tokens_per_s + output_tokens_per_s
    return PerGpu(gpus, requests_per_s / gpus, input_tokens_per_s / gpus, output_tokens_per_s / gpus, total / gpus)


def cost(
    price_per_hour: float, output_price_ratio: float, input_tokens_per_s: float, output_tokens_per_s: float
) -> Cost:
    """Price per million tokens at these rates, if the machine is always this busy.

    An hour's price is shared among its tokens so that an output token costs r = output_price_ratio times a prompt
    token: prompt = P / (I + r * O) and output = r * prompt, with P the price per second and I, O the rates. Blended is
    P / (I + O). So prompt * I + output * O = blended * (I + O) = P: nothing is charged twice.
    """
    per_million_s = price_per_hour / 3600 * 1e6
    weighted = input_tokens_per_s + output_price_ratio * output_tokens_per_s
    total = input_tokens_per_s + output_tokens_per_s
    prompt = per_million_s / weighted if weighted > 0 else None
    return Cost(
        price_per_hour=price_per_hour,
        output_price_ratio=output_price_ratio,
        prompt=prompt if input_tokens_per_s > 0 else None,
        output=output_price_ratio * prompt if prompt is not None and output_tokens_per_s > 0 else None,
        blended=per_million_s / total if total > 0 else None,
    )
