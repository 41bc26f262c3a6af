"""What a widget has to stand up to on a page: accessibility, room, steadiness, both themes, a picture.

In a test, with a page of ``notebook(...)`` and the ``axe`` fixture of this folder::

    from tests.e2e import checks

    board = page.locator('[data-testid="uia-board"]')
    assert not checks.violations(page, axe, board)
    checks.narrow(page, board)
    assert not checks.overflowing(board)
    with checks.shifts(page) as seen:
        ...  # 100 updates
    assert not seen
    for theme in checks.themes(page):
        checks.picture(board, f"board_{theme}")
"""

import contextlib
from pathlib import Path

SCREENSHOTS = Path(__file__).parent / "screenshots"
NARROW_PX = 600

_AXE = """async (element) => {
  const found = await axe.run(element, { resultTypes: ['violations'] });
  return found.violations
    .filter((it) => it.impact === 'serious' || it.impact === 'critical')
    .flatMap((it) => it.nodes.map((node) => `${it.id}: ${node.html.slice(0, 160)}: ${node.failureSummary}`));
}"""

# What scrolls or ends in "…" on purpose has its own box; what is only there to be read out has none.
_OVERFLOWING = """(root) => {
  const edge = root.getBoundingClientRect();
  const clipped = (element) => {
    for (let at = element; at && at !== root; at = at.parentElement) {
      if (getComputedStyle(at).overflowX !== 'visible') return true;
    }
    return false;
  };
  return [root, ...root.querySelectorAll('*')].flatMap((element) => {
    const box = element.getBoundingClientRect();
    if (!box.width || element.closest('.uia-hidden') || element.closest('svg')) return [];
    const style = getComputedStyle(element);
    const name = `${element.tagName.toLowerCase()}.${element.getAttribute('class') ?? ''}`;
    const out = !clipped(element) && (box.right > edge.right + 1 || box.left < edge.left - 1);
    const scrolls = style.overflowX === 'auto' || style.overflowX === 'scroll';
    const cut = style.textOverflow === 'ellipsis';
    const over = style.display !== 'inline' && !cut && element.clientWidth > 0 &&
      element.scrollWidth > element.clientWidth + 1;
    if (out) return [`${name} leaves its widget by ${Math.round(box.right - edge.right)} px`];
    if (over && scrolls) return [`${name} has to be scrolled sideways`];
    return over ? [`${name} is ${element.scrollWidth - element.clientWidth} px wider than its box`] : [];
  });
}"""

_PAPER = """(light) => {
  const paper = getComputedStyle(document.body).getPropertyValue('--jp-layout-color1').trim();
  return paper !== '' && /^(white|#fff)/i.test(paper) === light;
}"""

_WATCH = """() => {
  window.uiaShifts = [];
  window.uiaShiftObserver = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      for (const source of entry.sources) {
        const node = source.node?.nodeType === 1 ? source.node : source.node?.parentElement;
        if (node?.closest('.uia')) {
          const box = (rect) => [rect.x, rect.y, rect.width, rect.height].map(Math.round).join(' ');
          window.uiaShifts.push(
            `${node.tagName.toLowerCase()}.${node.getAttribute('class')} ` +
            `"${node.textContent.slice(0, 40)}": ` +
            `${box(source.previousRect)} to ${box(source.currentRect)}`);
        }
      }
    }
  });
  window.uiaShiftObserver.observe({ type: 'layout-shift' });
}"""
_WATCHED = """async () => {
  await new Promise((next) => requestAnimationFrame(() => setTimeout(next, 100)));
  window.uiaShiftObserver.disconnect();
  return window.uiaShifts;
}"""


def violations(page, axe, locator):
    """Serious and critical violations that axe-core finds in an element, in words."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(axe)
    return locator.evaluate(_AXE)


def narrow(page, locator, width=NARROW_PX):
    """Gives a widget so many pixels."""
    locator.evaluate("(element, width) => { element.style.width = `${width}px`; }", width)
    page.evaluate("() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))")


def wide(locator):
    """Gives a widget its own width again."""
    locator.evaluate("(element) => { element.style.width = ''; }")


def overflowing(locator):
    """Elements that are wider than their box, in words."""
    return locator.evaluate(_OVERFLOWING)


@contextlib.contextmanager
def shifts(page):
    """Elements of widgets that moved without a user's doing, in words; filled in at the end."""
    seen = []
    page.evaluate(_WATCH)
    yield seen
    seen += page.evaluate(_WATCHED)


def themes(page):
    """JupyterLab's light theme, then its dark one; at the end the light one again."""
    for name in ("light", "dark"):
        set_theme(page, name)
        yield name
    set_theme(page, "light")


def set_theme(page, name):
    """Changes the theme of the page and waits until it is there."""
    page.evaluate(
        "(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })",
        f"JupyterLab {name.title()}",
    )
    lit = str(name == "light").lower()
    page.wait_for_selector(f'body[data-jp-theme-light="{lit}"]', state="attached")
    # The theme's style sheet comes a moment after its name, and colours fade over.
    page.wait_for_function(_PAPER, arg=name == "light")
    page.wait_for_timeout(600)


def picture(locator, name):
    """A screenshot of a widget, to be looked at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    locator.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")
