"""A function of a notebook as a backend, seen in the live table of the page."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

SERVE = """
import uia_lab
lab = uia_lab.connect()

@lab.serve(model="shout")
def shout(inputs):
    if inputs[-1]["content"] == "break":
        raise ZeroDivisionError("only for the notebook")
    for word in inputs[-1]["content"].split():
        yield word.upper() + " "
"""


def row(page):
    return page.locator('[data-testid="uia-board-row"][data-backend^="shout-"]')


def test_a_served_function_is_in_the_table_and_offline_when_its_kernel_dies(notebook, run_all, server):
    page = notebook([SERVE, "lab.status()", 'lab.generate("be loud", model="shout")'])
    run_all()
    page.wait_for_function("() => document.body.innerText.includes('BE LOUD')")
    row(page).locator(".uia-pill", has_text="healthy").first.wait_for()
    assert "shout" in [model["id"] for model in server.ask("GET", "v1/models")["data"]]

    body = {"model": "shout", "messages": [{"role": "user", "content": "from elsewhere"}]}
    answer = server.ask("POST", "v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "FROM ELSEWHERE "
    body["messages"][0]["content"] = "break"
    with pytest.raises(OSError, match="502"):
        server.ask("POST", "v1/chat/completions", body)
    page.wait_for_function("() => document.body.innerText.includes('only for the notebook')")

    # As out of memory: the kernel is gone without a word, and the page sees it over its own connection.
    page.evaluate(
        """async () => {
          const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          kernel.requestExecute({ code: "import os; os.kill(os.getpid(), 9)" });
        }"""
    )
    row(page).locator(".uia-pill", has_text="offline").first.wait_for()
