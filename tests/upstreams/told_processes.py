"""Processes that tell a line of JSON once they are up, and end when their standard input does."""

import contextlib
import json
import os
import signal
import subprocess
import threading

START_S = 60.0
STOP_S = 20.0


class ToldProcess:
    """One of them.

    Args:
        process: It.
        told: What it told; each field is an attribute.
    """

    def __init__(self, process, told):
        self.process = process
        self.__dict__.update(told)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def told_processes():
    """Gives what starts one by its command; all of them end with the block, frozen ones too."""
    started = []

    def start(*command):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, f"{command[-2]} did not come up"
        return ToldProcess(process, json.loads(line))

    try:
        yield start
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.stdin.close()
        for process in started:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            finally:
                process.stdout.close()
