"""Dashboard and alert rules speak of metrics that exist. Prometheus itself runs them in `make test-external`."""

import re

from dashboard import PATH, panels, queries

from mixtral_serving.engine_metrics import FAMILIES
from mixtral_serving.metrics import Kind

RULES = PATH.parents[1] / "prometheus-rules.yml"
SERIES = {
    f"{family.name}{part}"
    for family in FAMILIES
    for part in (("_bucket", "_sum", "_count") if family.kind is Kind.HISTOGRAM else ("",))
}


def test_every_name_is_a_series() -> None:
    for text in [RULES.read_text(), *(query.expression for query in queries())]:
        assert set(re.findall(r"\bmixtral_\w+", text)) <= SERIES


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(query.expression for query in queries())
    assert [family.name for family in FAMILIES if family.name not in shown] == []


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_query_can_be_narrowed_to_one_server() -> None:
    for query in queries():
        selectors = re.findall(r"(?:mixtral|nv)_\w+({[^}]*})?", query.expression)
        assert all('instance=~"$instance"' in selector for selector in selectors), str(query)
