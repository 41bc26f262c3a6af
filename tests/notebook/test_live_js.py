"""The JavaScript client in Node, against a real server."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

import uia_lab
from tests.node import NODE
from uia_lab.doors.application import HttpServer

LIVE = Path(uia_lab.__file__).parent / "notebook/static/live.js"
pytestmark = pytest.mark.e2e

HEAD = """
import { connectLive } from "./live.mjs";
const say = (...words) => console.log(JSON.stringify(words));
const heard = new Promise((go) => process.stdin.once("data", go));
const live = connectLive({ url: process.argv[2], token: process.argv[3] });
"""


class Script:
    """A script in Node: what it says, line by line."""

    def __init__(self, folder, server, body):
        shutil.copy(LIVE, folder / "live.mjs")
        (folder / "main.mjs").write_text(HEAD + body)
        self.process = subprocess.Popen(
            [NODE, str(folder / "main.mjs"), server.url, server.key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._timer = threading.Timer(90, self.process.kill)
        self._timer.start()

    def hear(self, word):
        """The rest of the next line that begins with a word."""
        for line in self.process.stdout:
            said = json.loads(line)
            if said[0] == word:
                return said[1:]
        raise AssertionError(self.process.stderr.read())

    def tell(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def ended(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0, self.process.stderr.read()
        self.close()

    def close(self):
        self._timer.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


@pytest.fixture
def script(tmp_path, server):
    made = []

    def run(body):
        made.append(Script(tmp_path, server, body))
        return made[-1]

    yield run
    for script in made:
        script.close()


def test_answers_questions_and_errors(script):
    run = script("""
    const chunks = [];
    const whole = await live.infer({ model: "w", inputs: [{ role: "user", content: "a b" }], stream: true },
                                   (message) => chunks.push(message.chunk));
    say("stream", chunks.join(""), whole.type, whole.backend);
    const results = await Promise.all(["x", "y z"].map((content) =>
      live.infer({ model: "w", inputs: [{ role: "user", content }] })));
    say("whole", ...results.map((message) => message.result));
    say("pong", (await live.ask("ping")).type, (await live.ask("status", { details: "full" })).detail_level);
    const told = await live.ask("history", { after: 0, limit: 5 });
    say("history", told.interval_s, told.samples.length <= 5, live.seen.instances.has(told.instance_id));
    await live.ask("anything").catch((error) => say("no question", error.code));
    await live.infer({ model: "b", inputs: "x" }).catch((error) => say("error", error.code));
    await live.infer({ inputs: "x", task: "dancing" }).catch((error) => say("error", error.code));
    const slow = live.infer({ model: "w", inputs: [{ role: "user", content: "slowly " + "on ".repeat(500) }],
                              stream: true }, () => slow.cancel());
    await slow.catch((error) => say("error", error.code));
    say("state", live.seen.state);
    live.close();
    """)
    assert run.hear("stream") == ["a b ", "inference_complete", "words"]
    assert run.hear("whole") == ["x ", "y z "]
    assert run.hear("pong") == ["pong", "full"]
    assert run.hear("history") == [1, True, True]
    assert run.hear("no question") == ["bad_request"]
    assert [run.hear("error") for _ in range(3)] == [["backend_failed"], ["bad_request"], ["cancelled"]]
    assert run.hear("state") == ["live"]
    run.ended()


def test_topics_come_with_a_snapshot_and_again_after_a_restart(script, server, service):
    run = script("""
    live.subscribe((seen) => say("seen", seen.state));
    const leave = live.on("status", (data, sequence) => say("status", sequence, data.total_requests));
    await heard;
    leave();
    live.close();
    """)
    assert run.hear("status") == [0, 0]

    async def ask():
        await service.get_backend_manager().infer("embedding", inputs=["x"])

    server.portal.call(ask)
    while run.hear("status")[1] != 1:
        pass
    doors = HttpServer(service, "127.0.0.1", int(server.url.rpartition(":")[2].strip("/")))
    server.portal.call(server.doors.stop)
    while run.hear("seen") != ["reconnecting"]:
        pass
    server.portal.call(doors.start)
    assert run.hear("status") == [0, 1]
    run.tell()
    run.ended()
    server.portal.call(doors.stop)


def test_an_answer_that_is_cut_off_is_an_error(script, server):
    run = script("""
    const asked = live.infer({ model: "w", inputs: [{ role: "user", content: "slowly " + "on ".repeat(500) }],
                               stream: true }, () => say("chunk"));
    await asked.catch((error) => say("error", error.code));
    live.close();
    """)
    run.hear("chunk")
    server.portal.call(server.doors.stop)
    assert run.hear("error")[0] in ("connection_lost", "cancelled")
    run.ended()
