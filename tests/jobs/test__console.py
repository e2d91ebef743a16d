from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs._console import INTERRUPTED, Teller, run_command, terminate_as_interrupt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_log_every_line_is_its_own_and_nothing_is_said_twice() -> None:
    log = io.StringIO()
    teller = Teller(log)
    teller.say("begin")
    assert teller.wants_progress(last=False)
    teller.progress("1 of 2", last=False)
    assert not teller.wants_progress(last=False)
    assert teller.wants_progress(last=True)
    teller.progress("1 of 2", last=True)
    assert log.getvalue() == "begin\n1 of 2\n"


def test_on_a_terminal_progress_stays_in_place_and_the_last_line_remains() -> None:
    terminal = Terminal()
    teller = Teller(terminal)
    teller.progress("1 of 2", last=False)
    teller.progress("2 of 2", last=True)
    assert terminal.getvalue() == "\r\x1b[2K1 of 2\r\x1b[2K2 of 2\n"


def test_sigterm_is_an_interrupt_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def wait_for_the_end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)

    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        wait_for_the_end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with terminate_as_interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_command_runs_where_it_should_and_its_status_is_told(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit(int(os.path.basename(os.getcwd())))"
    (tmp_path / "7").mkdir()
    assert run_command([sys.executable, "-c", code], tmp_path / "7") == 7


def test_ctrl_c_ends_the_command_and_the_one_that_started_it(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    sleeps = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    runs = "import sys, pathlib; from jobs._console import run_command; "
    runs += f"sys.exit(run_command([sys.executable, '-c', {sleeps!r}], pathlib.Path.cwd()))"
    process = subprocess.Popen(
        [sys.executable, "-c", runs],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        # Tests that are run in the background ignore Ctrl-C, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells all of its foreground group
    assert process.wait(30) == INTERRUPTED
