"""A figure as PNG, which takes a browser."""

import shutil

import pytest

from uia_lab.notebook import figures
from uia_lab.notebook.frames import requests_frame

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a Chrome or Chromium"),
]


def test_a_figure_becomes_a_png(tmp_path):
    figure = figures.tokens(requests_frame([]))
    figure.write_image(tmp_path / "figure.png", width=320, height=240)
    head = (tmp_path / "figure.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == (320, 240)
