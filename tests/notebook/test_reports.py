import re
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.figures import MIME, still
from uia_lab.notebook.frames import COLUMNS, requests_frame
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.report_page import report_page


@pytest.fixture(params=["local", "server"])
def lab(request):
    if request.param == "local":
        transport = InProcessTransport(request.getfixturevalue("service"))
    else:
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    with Lab(transport) as lab:
        for prompt in ("one", "two words", "three words here"):
            lab.generate(prompt, model="w")
        with pytest.raises(Exception, match="out of paper"):
            lab.generate("x", model="b")
        yield lab


@pytest.fixture
def frame():
    return requests_frame(row(number) for number in range(300))


def row(number, **fields):
    return {
        "began_at": 1_700_000_000.0 - number,
        "id": f"r{number}",
        "principal": "p",
        "task": "text-generation",
        "model": "m</script><b>",
        "backend_id": "ab"[number % 2],
        "outcome": "failed" if number % 7 == 0 else "ok",
        "error": None,
        "stream": True,
        "attempts": [{}],
        "latency_s": 1 + number % 5,
        "queued_s": 0.0,
        "first_token_s": 0.5,
        "usage": {"input_tokens": 3, "output_tokens": 11, "estimated": False},
    } | fields


def test_requests_are_a_typed_table(lab):
    frame = lab.requests()
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == dict(COLUMNS)
    assert list(frame["outcome"]) == ["failed", "ok", "ok", "ok"]
    assert list(frame["output_tokens"])[1:] == [3, 2, 1]
    assert frame["began_at"].is_monotonic_decreasing
    assert (frame["latency_ms"] > 0).all()
    assert frame["began_at"].max() <= pd.Timestamp.now("UTC")


def test_filters(lab):
    everything = lab.requests()
    assert list(lab.requests(outcome="failed")["backend"]) == ["broken"]
    assert list(lab.requests(backend="words")["model"]) == ["w", "w", "w"]
    assert len(lab.requests(model="w", limit=2)) == 1
    assert len(lab.requests(task="text-embedding")) == 0
    assert len(lab.requests(timedelta(hours=1))) == 4
    assert len(lab.requests(datetime(2099, 1, 1, tzinfo=UTC))) == 0
    assert len(lab.requests(until="2020-01-01")) == 0
    assert len(lab.requests(until=everything["began_at"][1].timestamp() + 0.000_01)) == 3
    for filters, param in (({"outcome": "fine"}, "outcome"), ({"since": "soon"}, "since")):
        with pytest.raises(BadRequest, match=param):
            lab.requests(**filters)
    with pytest.raises(BadRequest, match="limit"):
        lab.requests(limit=0)


def test_more_than_a_page_is_asked_for_page_by_page(lab, monkeypatch):
    monkeypatch.setattr("uia_lab.notebook.traffic.PAGE", 2)
    frame = lab.requests(limit=100)
    assert len(frame) == 4
    assert frame["id"].is_unique
    assert len(lab.requests(limit=3)) == 3


def test_nothing_is_an_empty_table(service):
    with Lab(InProcessTransport(service)) as lab:
        frame = lab.requests()
        assert len(frame) == 0
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == dict(COLUMNS)
        for figure in (lab.plot_latency(), lab.plot_share(), lab.plot_tokens(), lab.plot_compare()):
            assert still(figure)["text/html"].startswith("<table>")


@pytest.mark.parametrize("name", ["plot_latency", "plot_share", "plot_tokens", "plot_compare"])
def test_figures(lab, name, tmp_path):
    figure = getattr(lab, name)()
    assert figure.data
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {MIME, "text/plain", "text/html"}
    assert len(str(bundle)) < 30_000
    figure.write_html(tmp_path / "figure.html")
    assert (tmp_path / "figure.html").stat().st_size > 1_000_000


def test_figures_say_in_words_what_they_show(frame):
    from uia_lab.notebook import figures

    latency = still(figures.latency(frame))["text/plain"]
    assert re.search(r"^a +150 ", latency, re.MULTILINE)
    share = still(figures.share(frame))["text/plain"]
    assert share.count("%") == 2
    assert "3,300" in still(figures.tokens(frame))["text/plain"]
    assert "m</script><b>" in still(figures.compare(frame, "model"))["text/plain"]
    with pytest.raises(BadRequest, match="by must be"):
        figures.compare(frame, "colour")
    many = requests_frame(row(number) for number in range(20_000))
    assert sum(len(trace.x) for trace in figures.latency(many).data) <= figures.MOST_POINTS


def test_the_report_is_one_page_that_fetches_nothing(lab, tmp_path):
    path = lab.report(tmp_path / "report.html", timedelta(days=1))
    page = path.read_text("utf-8")
    assert path.parent == tmp_path
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert len(page) < 6_000_000
    for what in ("words", "out of paper", lab.where, "Latest requests"):
        assert (what in page) is (what != "out of paper")
    # No element of the page itself points anywhere.
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=", outside)


def test_a_hostile_name_stays_text(frame):
    page = report_page("<b>where", {"instance_id": "<i>", "backends": []}, frame)
    assert "<b>where" not in page
    assert "m</script><b>" not in page
    assert page.count("</script>") == page.count("<script")


def test_what_is_missing_is_said(lab, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadRequest, match=r"uia-lab\[reports\]"):
        lab.requests()


def test_replay(lab):
    report = lab.replay("round_robin", since=timedelta(hours=1))
    assert report["replay"]["strategy"] == "round_robin"
    assert report["requests"] == 4
    text, html = repr(report), report._repr_mimebundle_()["text/html"]
    assert "simulated round_robin" in text
    assert "share of words" in text
    assert "healthy" in text
    assert "<details>" in html
    with pytest.raises(BadRequest, match="Did you mean"):
        lab.replay("round_robbin")
    with pytest.raises(BadRequest, match="nothing to replay"):
        lab.replay(since="2099-01-01")


def test_aliases(lab):
    aliases = lab.aliases
    assert aliases.set("fast", "nowhere", "w") is aliases
    assert lab.aliases["fast"] == ("nowhere", "w")
    assert lab.generate("one two", model="fast").text == "one two "
    assert "fast" in repr(aliases)
    assert "nowhere, w" in aliases._repr_mimebundle_()["text/html"]
    aliases.delete("fast")
    assert dict(lab.aliases) == {}
    with pytest.raises(BadRequest, match="no alias"):
        aliases.delete("fast")
    with pytest.raises(BadRequest, match="targets"):
        aliases.set("fast")
