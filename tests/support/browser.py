"""A headless Chromium that shows the playground, and what a reader does and sees in it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from external_tools import find_tool
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE_S = 30.0
CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = find_tool("chromium")
    for argument in ("headless=new", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1200,860"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(find_tool("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Playground:
    """The page, opened afresh: no key, no conversation, the size of a desktop, light colours."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.emulate(1200, 860)
        driver.get(url)
        driver.execute_script("sessionStorage.clear()")
        driver.get_log("browser")  # of the page before
        driver.get(url)

    def emulate(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        colors = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colors})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})

    def get(self, id_: str) -> WebElement:
        return self.driver.find_element(By.ID, id_)

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Keys for whatever has the focus."""
        chain = ActionChains(self.driver)
        if shift:
            chain.key_down(Keys.SHIFT).send_keys(*keys).key_up(Keys.SHIFT).perform()
        else:
            chain.send_keys(*keys).perform()

    def ask(self, question: str) -> None:
        self.get("prompt").send_keys(question, Keys.ENTER)

    def set(self, id_: str, value: str) -> None:
        code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.script(code, self.get(id_), value)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """What the condition returns once it is true; fails with what the page shows."""
        deadline = time.monotonic() + PATIENCE_S
        while not (result := condition()):
            assert time.monotonic() < deadline, self.driver.find_element(By.TAG_NAME, "body").text
            time.sleep(0.02)
        return result

    def finished(self) -> str:
        """The last answer, once it is complete."""
        self.wait(lambda: self.get("send").is_displayed() and self.all(".turn[aria-busy=false]"))
        return self.texts(".answer")[-1]

    def contrasts(self) -> dict[str, float]:
        """The lowest ratio of visible text to what lies behind it, for each kind of element."""
        found: dict[str, float] = json.loads(self.script(CONTRAST))
        return found

    @property
    def focused(self) -> str:
        """The id, or else the text, of what has the focus."""
        element = self.driver.switch_to.active_element
        return str(element.get_attribute("id") or element.text)

    def complaints(self) -> list[str]:
        """What the browser wrote into its console: errors of scripts, breaches of the security policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]
