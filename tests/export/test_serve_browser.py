"""The pages of the server in Chromium: `python -m pytest -m interop`, where playwright and a Chromium are installed."""

import base64
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.export.conftest import Published
from tests.export.test_bundle import JOBS, QUIET
from tests.export.test_serve import JSON, start
from tests.support.jobs import working_in
from tests.support.processes import PATIENCE
from trainer.cli import main

pytestmark = pytest.mark.interop


@contextmanager
def served(folder: Path) -> Iterator[str]:
    process, address = start(folder, "threads=1")
    try:
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


@contextmanager
def opened(browser: Any, url: str) -> Iterator[Any]:
    """Open the form; afterwards check that the page has reported nothing and has asked no other host."""
    page = browser.new_page()
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(url)
    page.get_by_text(" in, ").wait_for()
    yield page
    page.close()
    refused_row = "Failed to load resource: the server responded with a status of 422"  # which Chromium reports itself
    assert [problem for problem in problems if not problem.startswith(refused_row)] == []
    assert f"{url}/predict" in requests
    assert {each for each in requests if not each.startswith((f"{url}/", "data:", "blob:"))} == set()


def predict(page: Any) -> str:
    """Submit the form; return the answer as it is shown."""
    page.evaluate("document.querySelector('#answer').replaceChildren()")
    page.click("button")
    page.locator("#answer > *").first.wait_for()
    return str(page.inner_text("#answer"))


def ask(url: str, row: object) -> dict[str, Any]:
    request = Request(f"{url}/predict", json.dumps({"rows": [row], "top": 2}).encode(), {"Content-Type": JSON})
    with urlopen(request, timeout=PATIENCE) as response:
        answer: dict[str, Any] = json.loads(response.read())["answers"][0]
    return answer


def trained(task: str, folder: Path) -> Path:
    overrides, _ = JOBS[task](folder)
    with working_in(folder):
        assert main(["train", *overrides, *QUIET, "export.formats=[onnx]", f"run.dir={folder}/run"]) == 0
    return folder / "run/export"


def test_form_of_texts(browser: Any, published: Published) -> None:
    with served(published.folder) as url, opened(browser, url) as page:
        page.fill("#top", "2")
        for text in ("w1 w2 w3", "<script>alert(1)</script> w4"):
            page.fill("textarea", text)
            want = ask(url, text)
            shown = predict(page)
            assert shown.startswith(want["label"])
            for label, probability in want["probabilities"].items():
                assert label in shown
                assert f"{probability:.3f}" in shown
        page.fill("textarea", " ")
        assert predict(page) == "is empty"
        # The other pages are opened from the form.
        page.click("a[href=docs]")
        assert "POST /predict" in page.inner_text("main")
        page.click("a[href='./']")
        page.get_by_text("model.onnx: texts in, classes out.").wait_for()


def test_form_of_tables(browser: Any, tmp_path: Path) -> None:
    with served(trained("tabular_classification", tmp_path)) as url, opened(browser, url) as page:
        labels = {label.inner_text().strip(): label for label in page.query_selector_all("#fields label")}
        assert labels.keys() == {"size", "town", "constant", "level"}
        for size, town in ((170.5, "Bern"), (None, "Nowhere")):
            for name, value in {"size": size, "town": town, "constant": 1, "level": 2}.items():
                labels[name].query_selector("input").fill("" if value is None else str(value))
            want = ask(url, {"size": size, "town": town, "constant": 1, "level": 2})
            shown = predict(page)
            assert shown.startswith(want["label"])
            assert f"{want['probability']:.3f}" in shown


def test_form_of_images(browser: Any, tmp_path: Path) -> None:
    with served(trained("image_classification", tmp_path)) as url, opened(browser, url) as page:
        for name in ("clear.png", "colour.jpg"):
            page.set_input_files("input[type=file]", tmp_path / name)
            page.get_by_alt_text("the chosen image").wait_for()
            want = ask(url, base64.b64encode((tmp_path / name).read_bytes()).decode())
            shown = predict(page)
            assert shown.startswith(want["label"])
            assert f"{want['probability']:.3f}" in shown
        page.set_input_files("input[type=file]", tmp_path / "broken.png")
        assert "image" in predict(page)
