"""ChatView, clicked: every button, with Markdown that tries to be more than text."""

import pytest

from tests.e2e import checks
from tests.e2e.cells import by_id, cells_of, kept_outputs, local_functions, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

ANSWER = """# Lighthouses

A lighthouse has **three** parts, and `lamp.on()` lights it:

1. the tower,
2. the *lamp*,
3. the keeper.

| light | every |
|---|--:|
| white | 5 s |
| red | 12 s |

```python
for ship in night:
    lamp.flash(ship)
```

> Nobody else was awake.

<img src=x onerror="window.uiaHacked=1"> <script>window.uiaHacked=1</script>
[a trap](javascript:window.uiaHacked=1) and [a page](https://example.org/keeper)
![a picture](https://example.org/tracking.png)
"""
TELLING = f"""
import asyncio
ANSWER = {ANSWER!r}
async def keeper(inputs, parameters):
    said = inputs[-1]["content"]
    if "fail" in said:
        raise RuntimeError("the lamp is out of oil")
    text = ANSWER if "lighthouse" in said else "You said: " + said
    if "slowly" in said:
        text = "one more ship " * 400
    for start in range(0, len(text), 12):
        await asyncio.sleep(0.02)
        yield text[start:start + 12]
lab.serve(model="keeper")(keeper)
"""


def say(page, text):
    by_id(page, "uia-chat-input").fill(text)
    by_id(page, "uia-chat-input").press("Enter")


def answers(page):
    return by_id(page, "uia-chat-turn-assistant")


def ended(page, count):
    until(lambda: answers(page).count() == count, 30)
    until(lambda: by_id(page, "uia-chat-send").is_visible(), 30)


def test_a_conversation(notebook, run_all, axe, server):
    page = notebook(
        [local_functions() + TELLING, "chat = lab.chat('keeper')\nchat", "import time\ntime.sleep(6)"]
    )
    run_all()
    chat = by_id(page, "uia-chat")
    chat.wait_for(timeout=60_000)
    # The kernel is in its cell; a turn goes on all the same as soon as the kernel hears of it.
    say(page, "Tell me of the lighthouse")
    ended(page, 1)
    answer = answers(page).first
    for tag in ("h1", "strong", "code", "ol > li", "table td", "pre code", "blockquote", "em"):
        assert answer.locator(f".uia-markdown {tag}").count() >= 1, tag
    assert answer.locator("img, script").count() == 0
    assert answer.locator('a[href^="javascript"]').count() == 0
    assert "onerror" in answer.inner_text()
    assert (
        answer.locator('a[href="https://example.org/keeper"]').get_attribute("rel") == "noopener noreferrer"
    )
    assert page.evaluate("window.uiaHacked") is None

    by_id(page, "uia-chat-settings").click()
    by_id(page, "uia-chat-system").fill("You keep a lighthouse.")
    by_id(page, "uia-chat-temperature").fill("0.4")
    by_id(page, "uia-chat-max_tokens").fill("900")
    by_id(page, "uia-chat-top_p").fill("0.9")
    by_id(page, "uia-chat-seed").fill("7")
    by_id(page, "uia-chat-seed").press("Tab")
    until(lambda: by_id(page, "uia-chat-model").locator("option").count() >= 2)
    assert by_id(page, "uia-chat-model").input_value() == "keeper"
    by_id(page, "uia-chat-backend").select_option(index=1)
    say(page, "And the keeper?")
    ended(page, 2)
    assert not checks.violations(page, axe, chat)
    for theme in checks.themes(page):
        checks.picture(chat, f"chat_{theme}")
    by_id(page, "uia-chat-temperature").fill("9")
    by_id(page, "uia-chat-temperature").press("Tab")
    by_id(page, "uia-chat-notice").wait_for()
    assert "from 0 to 2" in by_id(page, "uia-chat-notice").inner_text()
    by_id(page, "uia-chat-temperature").fill("")
    by_id(page, "uia-chat-temperature").press("Tab")
    until(lambda: not by_id(page, "uia-chat-notice").is_visible())
    checks.narrow(page, chat)
    assert not checks.overflowing(chat)
    checks.picture(chat, "chat_narrow")
    checks.wide(chat)
    by_id(page, "uia-chat-settings").click()

    by_id(page, "uia-chat-regenerate").click()
    until(lambda: by_id(page, "uia-chat-stop").is_visible() or answers(page).count() == 2)
    ended(page, 2)
    by_id(page, "uia-chat-edit").click()
    assert by_id(page, "uia-chat-input").input_value() == "And the keeper?"
    by_id(page, "uia-chat-cancel").click()
    by_id(page, "uia-chat-edit").click()
    by_id(page, "uia-chat-input").fill("slowly")
    by_id(page, "uia-chat-send").click()
    by_id(page, "uia-chat-stop").click()
    ended(page, 2)
    assert "stopped" in answers(page).nth(1).inner_text()
    say(page, "fail")
    ended(page, 3)
    assert answers(page).nth(2).locator(".uia-error").inner_text()
    by_id(page, "uia-chat-copy").click()

    by_id(page, "uia-chat-to-markdown").click()
    until(lambda: "below" in by_id(page, "uia-chat-exported").inner_text())
    by_id(page, "uia-chat-to-code").click()
    until(lambda: sum("openai" in "".join(cell["source"]) for cell in cells_of(page, server)) == 1)
    cells = cells_of(page, server)
    assert [cell["cell_type"] for cell in cells[1:4]] == ["code", "code", "markdown"]
    assert "**You:**" in "".join(cells[3]["source"])
    assert "You keep a lighthouse." in "".join(cells[2]["source"])
    kept = ["".join(data.get("text/html", "")) for data in kept_outputs(page, server)]
    assert any("<h1>Lighthouses</h1>" in html and "&lt;script&gt;" in html for html in kept)
    assert not page.locator('[data-testid="uia-chat-still"]').is_visible()

    by_id(page, "uia-chat-clear").click()
    until(lambda: answers(page).count() == 0)
    checks.picture(chat, "chat_empty")


def test_a_turn_at_the_server(notebook, run_all):
    page = notebook(["import uia_lab\nuia_lab.connect().chat(max_tokens=12, temperature=0)"])
    run_all()
    by_id(page, "uia-chat").wait_for(timeout=60_000)
    say(page, "Say hello.")
    until(lambda: answers(page).count() == 1, 60)
    assert "tok/s" in answers(page).first.inner_text() or answers(page).first.inner_text()
    by_id(page, "uia-chat-edit").click()
    by_id(page, "uia-chat-input").fill("Write a very long story.")
    by_id(page, "uia-chat-send").click()
    ended(page, 1)
