"""A command-line tool that misbehaves as it is told: ``python fake_cli.py BEHAVIOUR TOKEN [...]``.

The token is on the command line of everything it starts, so that a test can look for what is left.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OUT = sys.stdout.buffer


def put(text, end=b""):
    OUT.write((text.encode() if isinstance(text, str) else text) + end)
    OUT.flush()


def complain(text):
    sys.stderr.write(f"{text}\n")


def event(**fields):
    put(json.dumps(fields), b"\n")


def delta(text):
    inner = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
    event(type="stream_event", event=inner)


def result(**fields):
    event(type="result", **{"subtype": "success", "is_error": False, **fields})


def sleep():
    while True:
        time.sleep(3600)


def relative(*, session):
    """Another process with our pipes, in our group or in a session of its own."""
    subprocess.Popen([sys.executable, __file__, "stubborn", sys.argv[2]], start_new_session=session)


def echo():
    for word in sys.stdin.read().split(" "):
        put(word + " ")


def hang():
    put("begun ")
    sleep()


def mute():
    sleep()


def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    put("begun ")
    sleep()


def family():
    relative(session=False)
    relative(session=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    put("begun ")
    sleep()


def orphans():
    relative(session=False)
    relative(session=True)
    # Their first words come by our pipe, too.
    put("well")


def deaf():
    os.close(0)
    put("did not listen")


def split():
    for byte in "Grüße 🎈".encode():
        put(bytes([byte]))
        time.sleep(0.01)


def bad():
    put(b"caf\xe9 \xff!")


def huge():
    while True:
        put(b"x" * 65536)


def huge_line():
    put('{"type": "result", "x": "')
    huge()


def error0():
    put("Error: the account has no credit left", b"\n")


def silent():
    complain("\x1b[31mnobody is logged in\x1b[0m")


def fails():
    complain(f"cannot go on with {os.environ.get('MY_KEY')} and {os.environ.get('UIA_LAB_TOKEN')}")
    sys.exit(3)


def late():
    put("a good answer", b"\n")
    complain("then it broke")
    sys.exit(1)


def chatty():
    complain("w" * (1 << 20))
    put("said it")


def environment():
    put(json.dumps({"environment": dict(os.environ), "folder": str(Path.cwd()), "arguments": sys.argv[3:]}))


def events():
    put("A warning that went to the wrong place", b"\n")
    event(type="system", subtype="init", tools=[])
    line = json.dumps(
        {
            "type": "stream_event",
            "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Grüße, "}},
        }
    ).encode()
    for start in range(0, len(line), 7):
        put(line[start : start + 7])
    put(b"\n")
    delta("everybody")
    event(type="assistant", message={"content": [{"type": "text", "text": "Grüße, everybody"}]})
    result(
        result="Grüße, everybody", usage={"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 3}
    )


def events_whole():
    result(result="at once")


def events_exit1():
    events()
    sys.exit(1)


def events_linger():
    events()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep()


def events_cut():
    delta("half an ")


def events_empty():
    result(result="  ")


def events_error():
    delta("begun ")
    result(is_error=True, subtype="error_during_execution", result="the model is gone")


def events_api_error():
    delta("[API Err")
    delta("or: 404 no such model]")
    result(result="[API Error: 404 no such model]")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
