"""The playground's files hold to the policy under which a browser runs them, and fetch nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playground_scripts import STATIC

HTML = (STATIC / "index.html").read_text()
FILES = sorted(path for path in STATIC.iterdir() if path.suffix in {".html", ".js", ".css", ".svg"})
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched
# What would turn a model's text into markup or code, or needs the policy's leave.
FORBIDDEN = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "createContextualFragment", "DOMParser",
    "srcdoc", "eval(", "new Function", "setAttribute(\"style\"", "setAttribute('style'", "cssText",
    "localStorage", "indexedDB", "document.cookie", "WebSocket", "EventSource", "sendBeacon", "serviceWorker",
)  # fmt: skip


class Page(HTMLParser):
    """Every element with its attributes, and the text inside script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline = ""
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


def test_the_folder_holds_nothing_else() -> None:
    assert {path.name for path in FILES} == {path.name for path in STATIC.iterdir()}
    assert sum(path.stat().st_size for path in FILES) < 100_000


def test_no_script_or_style_is_inline(page: Page) -> None:
    assert page.inline == ""
    assert page.all("style") == []
    attributes = [name for _, named in page.elements for name in named]
    assert [name for name in attributes if name == "style" or name.startswith("on")] == []


def test_every_address_is_a_file_beside_the_page(page: Page) -> None:
    """Relative, so that a proxy may serve it under a path of its own."""
    addresses = [named[name] for _, named in page.elements for name in ("src", "href", "action") if name in named]
    files = [address for address in addresses if not address.startswith("#")]
    assert "app.js" in files
    assert [name for name in files if not (STATIC / name).is_file()] == []
    assert page.all("base", "iframe", "object", "embed") == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_elsewhere(path: Path) -> None:
    text = path.read_text().replace(NAMESPACE, "")
    assert re.findall(r"https?://[\w.]+|[\"'(]//\w|url\(|@import", text) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text_and_keep_nothing_beyond_the_tab(path: Path) -> None:
    text = path.read_text()
    assert [word for word in FORBIDDEN if word in text] == []
    for module in re.findall(r"from \"(.*?)\"", text):
        assert (STATIC / module).is_file(), f"{path.name} imports {module}"


def test_every_control_has_a_label(page: Page) -> None:
    labelled = {label.get("for") for label in page.all("label")}
    for control in page.all("input", "textarea", "select"):
        assert control.get("id") in labelled, control
    ids = [named["id"] for _, named in page.elements if "id" in named]
    assert len(ids) == len(set(ids))
    for _, named in page.elements:
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            assert set(named.get(name, "").split()) <= set(ids), named


def test_scripts_name_elements_that_exist(page: Page) -> None:
    ids = {named["id"] for _, named in page.elements if "id" in named}
    for path in FILES:
        if path.suffix == ".js":
            assert set(re.findall(r"byId\(\"([^\"]*)\"\)", path.read_text())) <= ids, path.name
