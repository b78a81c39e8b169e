"""The playground in a real browser, on the real gateway and Triton; on a scripted gateway where those cannot be made to
misbehave."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browser import Playground, chromium
from gateway_process import GatewayProcess, gateway_process
from scripted_gateway import Reply, ScriptedGateway, scripted_gateway
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from synthetic_server import synthetic_server
from system_server import Server, idle

KEY = "playground-key-0123456789"
QUESTION = "My name is Zorin and my kite is red. What is my name, and what color is my kite?"
STORY = "Tell me a short story about an owl and a lost kite."
FIGURES = re.compile(r"[\d.]+ m?s to first token · [\d.]+ tokens/s · (\d+) tokens in, (\d+) out")


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        yield driver


@contextmanager
def sound(page: Playground) -> Iterator[Playground]:
    """One of which the browser's log says nothing when the test is over."""
    yield page
    assert page.complaints() == []


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[GatewayProcess]:
    with gateway_process(server.grpc_url) as running:
        yield running


@pytest.fixture
def page(driver: webdriver.Chrome, gateway: GatewayProcess) -> Iterator[Playground]:
    with sound(Playground(driver, gateway.url)) as page:
        yield page


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answers are nonsense, never end by themselves, and come as a person reads."""
    folder = tmp_path_factory.mktemp("paced")
    with (folder / "log").open("w") as log, synthetic_server(folder / "engine", {"step_s": 0.03}, log=log) as process:
        yield Server(process.address)


@pytest.fixture(scope="module")
def paced_gateway(paced: Server) -> Iterator[GatewayProcess]:
    with gateway_process(paced.grpc_url) as running:
        yield running


@pytest.fixture
def paced_page(driver: webdriver.Chrome, paced_gateway: GatewayProcess) -> Iterator[Playground]:
    with sound(Playground(driver, paced_gateway.url)) as page:
        yield page


@pytest.fixture
def scripted() -> Iterator[ScriptedGateway]:
    with scripted_gateway() as gateway:
        yield gateway


@pytest.fixture
def scripted_page(driver: webdriver.Chrome, scripted: ScriptedGateway) -> Iterator[Playground]:
    with sound(Playground(driver, scripted.url)) as page:
        yield page


def test_a_question_is_answered_with_its_figures(page: Playground) -> None:
    page.wait(lambda: page.get("model").text not in ("", "connecting"))
    page.set("temperature", "0")
    page.ask(QUESTION)
    assert "Zorin" in page.finished()
    figures = FIGURES.fullmatch(page.texts(".meta")[0])
    assert figures is not None
    assert (int(figures[1]), int(figures[2])) == (28, 13)
    page.ask("What is my name?")  # the conversation so far goes along
    assert "Zorin" in page.finished()
    assert page.texts(".question p") == [QUESTION, "What is my name?"]


def test_text_is_seen_streaming_and_stop_reaches_the_engine(paced_page: Playground, paced: Server) -> None:
    page = paced_page
    before = paced.wait_for_stats(idle)["finished"]["cancelled"]
    page.set("max-tokens", "1900")
    page.ask(STORY)
    early = page.wait(lambda: page.texts(".answer")[-1])
    assert page.get("stop").is_displayed()
    later = page.wait(lambda: len(now := page.texts(".answer")[-1]) > len(early) + 20 and now)
    assert later.startswith(early)
    assert re.search(r"about [\d.]+ tokens/s", page.texts(".meta")[0])
    page.get("stop").click()
    assert page.wait(lambda: page.texts(".error")) == ["Stopped."]
    stopped = page.finished()
    assert paced.wait_for_stats(idle)["finished"]["cancelled"] == before + 1
    assert page.texts(".answer") == [stopped]
    assert page.focused == "prompt"


def test_regenerate_with_a_seed_gives_the_same_and_a_new_chat_is_empty(page: Playground) -> None:
    page.set("temperature", "1")
    page.set("seed", "7")
    page.set("max-tokens", "20")
    page.ask("Tell me a story.")
    first = page.finished()
    assert page.texts(".error") == ["Cut at the maximum of tokens."]
    (again,) = page.all(".foot button")
    assert again.text == "Regenerate"
    again.click()
    assert page.finished() == first
    page.set("seed", "8")
    page.all(".foot button")[0].click()
    assert page.finished() != first
    page.get("clear").click()
    assert page.all(".turn") == []
    assert page.get("welcome").is_displayed()


def test_a_system_message_is_given_to_the_model(page: Playground) -> None:
    page.set("temperature", "0")
    page.get("system").send_keys("My name is Zorin and my kite is red.")
    page.ask("What is my name?")
    assert "Zorin" in page.finished()


def test_a_refusal_says_what_and_why(page: Playground) -> None:
    page.set("max-tokens", "100000")
    page.ask(QUESTION)
    assert page.finished() == ""
    (error,) = page.texts(".error")
    assert error.startswith("The server refused the request")
    assert "100000" in error
    page.set("max-tokens", "20")
    page.all(".foot button")[0].click()
    assert page.finished(), page.texts(".error")


def test_a_value_out_of_range_is_not_sent(page: Playground) -> None:
    page.set("max-tokens", "0")
    page.ask("Hello")
    assert page.all(".turn") == []
    assert page.focused == "max-tokens"


def test_a_key_is_asked_for_and_kept_in_this_tab_only(driver: webdriver.Chrome, server: Server) -> None:
    with gateway_process(server.grpc_url, environment={"MIXTRAL_GATEWAY_API_KEYS": f"reader:{KEY}"}) as guarded:
        page = Playground(driver, guarded.url)
        page.wait(lambda: page.get("key").is_displayed())
        assert page.focused == "key"
        page.press("wrong-key-0123456789", Keys.ENTER)
        page.wait(lambda: "did not accept" in page.get("key-reason").text and page.get("key-dialog").is_displayed())
        page.press(KEY, Keys.ENTER)
        page.wait(lambda: page.get("health").get_attribute("class") == "dot good")
        page.set("temperature", "0")
        page.ask(QUESTION)
        assert "Zorin" in page.finished()
        assert page.script("return [localStorage.length, document.cookie]") == [0, ""]
        assert page.script("return Object.values(sessionStorage)") == [KEY]
        assert KEY not in page.script("return document.documentElement.outerHTML")
        page.get("forget-key").click()
        page.ask("Hello")
        page.wait(lambda: page.get("key").is_displayed())
        page.press(Keys.ESCAPE)
        page.wait(lambda: "API key" in "".join(page.texts(".error")))
        assert page.complaints() == []


def test_a_gateway_that_is_gone_is_told_and_found_again(driver: webdriver.Chrome, server: Server) -> None:
    with gateway_process(server.grpc_url) as first:
        page = Playground(driver, first.url)
        page.wait(lambda: page.get("health").get_attribute("class") == "dot good")
    page.ask(QUESTION)
    page.finished()
    assert page.texts(".error") == ["The server cannot be reached. It may have stopped, or the network is gone."]
    with gateway_process(server.grpc_url, port=first.port):
        page.all(".foot button")[0].click()
        assert page.finished(), page.texts(".error")


def test_a_busy_server_is_asked_again_when_it_says(scripted_page: Playground, scripted: ScriptedGateway) -> None:
    scripted.replies = [Reply(status=429, error="the queue is full", headers={"Retry-After": "1"}), Reply(["At last."])]
    scripted_page.ask("Hello")
    scripted_page.wait(lambda: "Trying again in 1 s." in "".join(scripted_page.texts(".error")))
    assert scripted_page.finished() == "At last."
    assert len(scripted.requests) == 2


def test_an_answer_that_breaks_off_is_kept_and_told(scripted_page: Playground, scripted: ScriptedGateway) -> None:
    scripted.replies = [Reply(["Half an"], cut=True), Reply(status=503, error="UNAVAILABLE: the server is draining")]
    scripted_page.ask("Hello")
    assert scripted_page.finished() == "Half an"
    assert scripted_page.texts(".error") == ["The connection ended before the answer was complete."]
    scripted_page.ask("More")
    scripted_page.finished()
    assert scripted_page.texts(".error")[-1] == "The server is not ready. The server is draining."


HOSTILE = """<img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>
[a](javascript:window.harmed=1) [b](https://safe.test/?q="onclick=") ![c](https://elsewhere.test/pixel.png)

```html"><b onclick=x>
</code></pre><script>window.harmed = 1</script>
```
| <svg onload=x> | **<i>** |
|---|---|
| `<u>` | <a href=x> |
"""


def test_an_answer_makes_no_markup_but_its_own(scripted_page: Playground, scripted: ScriptedGateway) -> None:
    scripted.replies = [Reply(list(HOSTILE))]
    scripted_page.ask("Harm me")
    text = scripted_page.finished()
    assert '<img src=x onerror="window.harmed = 1">' in text
    found = scripted_page.script(
        "return [...document.querySelectorAll('.answer *')].map((e) => [e.localName, e.getAttributeNames()])"
    )
    allowed = {
        "p": set(), "br": set(), "em": set(), "strong": set(), "code": set(), "table": set(), "thead": set(),
        "tbody": set(), "tr": set(), "th": set(), "td": set(), "pre": {"tabindex", "role", "aria-label"},
        "a": {"href", "target", "rel"},
    }  # fmt: skip
    assert [(tag, names) for tag, names in found if not set(names) <= allowed[tag]] == []
    assert [link.get_attribute("href")[:13] for link in scripted_page.all(".answer a")] == [
        "https://safe.",
        "https://elsew",
    ]
    assert scripted_page.script("return window.harmed") is None


def test_all_of_it_by_keyboard(paced_page: Playground, paced: Server) -> None:
    page = paced_page
    assert page.focused == "prompt"
    page.press(STORY)
    page.press(Keys.ENTER, shift=True)
    page.press("Thanks!")
    assert page.get("prompt").get_attribute("value") == f"{STORY}\nThanks!"
    page.press(Keys.BACKSPACE * 8)
    order = []
    for _ in range(6):
        page.press(Keys.TAB)
        order.append(page.focused)
    assert order == ["send", "temperature", "top-p", "max-tokens", "seed", "system"]
    page.press(Keys.TAB, shift=True)
    page.press("4")
    page.press(Keys.TAB, shift=True)
    page.press(Keys.BACKSPACE * 3 + "1900")
    page.press(Keys.TAB, shift=True)
    page.press(Keys.TAB, shift=True)
    page.press(Keys.END)
    assert page.get("temperature-value").text == "2"
    page.press(Keys.TAB, shift=True)
    page.press(Keys.TAB, shift=True)
    assert page.focused == "prompt"
    page.press(Keys.ENTER)
    page.wait(lambda: "".join(page.texts(".answer")))
    page.press(Keys.ESCAPE)
    assert page.wait(lambda: page.texts(".error")) == ["Stopped."]
    assert page.focused == "prompt"
    paced.wait_for_stats(idle)


def test_on_a_phone(page: Playground) -> None:
    page.emulate(390, 800, phone=True)
    page.wait(lambda: not page.get("settings").is_displayed())
    page.set("temperature", "0")
    page.get("prompt").click()
    page.ask(QUESTION)
    assert "Zorin" in page.finished()
    assert page.script("return document.documentElement.scrollWidth <= innerWidth")
    page.get("settings-toggle").click()
    assert page.get("settings-toggle").get_attribute("aria-expanded") == "true"
    assert page.get("system").is_displayed()
    page.press(Keys.ESCAPE)
    assert not page.get("settings").is_displayed()
    assert page.focused == "settings-toggle"
    small = [
        button.get_attribute("id") or button.text
        for button in page.all("button")
        if button.is_displayed() and min(button.size["width"], button.size["height"]) < 40
    ]
    assert small == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_in_both_colours(
    driver: webdriver.Chrome, scripted: ScriptedGateway, scripted_page: Playground, dark: bool
) -> None:
    scripted_page.emulate(1200, 860, dark=dark)
    scripted.replies = [Reply(["A `code` [link](https://a.test)\n> quote"]), Reply(status=503)]
    scripted_page.ask("Hello")
    scripted_page.finished()
    scripted_page.ask("And?")
    scripted_page.finished()
    background = "return getComputedStyle(document.body).backgroundColor"
    ground = scripted_page.script(background)
    assert (int(re.findall(r"\d+", ground)[0]) < 128) == dark
    found = scripted_page.contrasts()
    assert len(found) > 15
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    scripted_page.get("theme").click()
    assert scripted_page.script(background) != ground
    assert {name: ratio for name, ratio in scripted_page.contrasts().items() if ratio < 4.5} == {}


def test_everything_that_can_be_used_has_a_name(page: Playground) -> None:
    page.set("max-tokens", "5")
    page.ask("Hello")
    page.finished()
    for element in page.all("button, input, textarea, a, [tabindex], dialog, aside, [role=log]"):
        if element.is_displayed():
            assert element.accessible_name, element.get_attribute("outerHTML")
    assert [heading.text for heading in page.all("h1")] == ["Playground"]
    assert page.script("return document.documentElement.lang") == "en"
    assert page.get("status").text == "Answer complete"
