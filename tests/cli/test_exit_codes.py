"""How a command ends: each kind of end has its own exit code, and says in one line what it was."""

import itertools
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from encodec_fast import cli, pretrained
from encodec_fast.cli.app import EXIT_CODES, Stopped, ending_on_signals
from encodec_fast.cli.tokenize import naming_ends
from encodec_fast.dataset import tokenize
from encodec_fast.dataset.engines import naming_stops
from encodec_fast.dataset.ray_engine import RayLost, _loss, _noticing_loss
from support.venvs import ROOT


def run(capsys, *arguments):
    """(exit code, lines of standard error) of the command in this process."""
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err.splitlines()


def raising(monkeypatch, error):
    """Has `tokenize` meet the error where it lists its sources."""

    def fail(*_):
        raise error

    monkeypatch.setattr(tokenize, "find_tasks", fail)


def test_no_two_kinds_of_end_share_a_code():
    named = [cli.OK, cli.CLIPS_FAILED, cli.WRONG_ARGUMENT, cli.STOPPED, cli.FAULT, cli.INTERRUPTED]
    assert len(set(named)) == 6 and list(EXIT_CODES) == named


@pytest.mark.parametrize(
    "name", [(), ("tokenize",), ("decode",), ("verify",), ("quality",), ("info",), ("demo",)], ids=lambda name: name or "top"
)
def test_every_help_has_the_table_of_exit_codes(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([*name, "--help"]) == cli.OK
    out = capsys.readouterr().out
    assert [int(code) for code in re.findall(r"^ (\d+): ", out, re.MULTILINE)] == list(EXIT_CODES)


def test_the_documentation_has_the_same_codes():
    (line,) = re.findall(r"\*\*Exit codes\*\*.*?crash\.", (ROOT / "docs" / "data-sets.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [int(code) for code in re.findall(r"(?:[:;]|\n)\s+(\d+) [a-z]", line)] == list(EXIT_CODES)


def test_what_nobody_expected_shows_a_traceback_and_is_not_taken_for_failed_clips(capsys, monkeypatch):
    raising(monkeypatch, ZeroDivisionError("in the library"))
    code, err = run(capsys, "tokenize", "x", "--out", "y")
    assert code == cli.FAULT and any("Traceback" in line for line in err)
    assert err[-1].startswith("encodec-fast: ZeroDivisionError: in the library. This is a fault of encodec_fast")


@pytest.mark.parametrize(
    "arguments, named",
    [(["x", "--out", ""], "the value of --out"), (["x", "-o", ""], "the value of -o"), (["x", "--out="], "the value of --out"),
     (["", "--out", "y"], "an argument")],
)  # fmt: skip
def test_an_empty_value_is_refused_that_would_be_this_folder(capsys, arguments, named):
    code, err = run(capsys, "tokenize", *arguments)
    assert code == cli.WRONG_ARGUMENT and err == [f"encodec-fast: {named} is empty, as from a shell variable that is not set."]


def test_the_end_of_a_file_is_not_taken_for_an_interrupt(capsys, monkeypatch):
    raising(monkeypatch, EOFError("too early"))
    code, err = run(capsys, "tokenize", "x", "--out", "y")
    assert code == cli.FAULT and "interrupted" not in err[-1]


LACKING = [MemoryError("9 GB"), BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device", "y")]


@pytest.mark.parametrize("error", LACKING, ids=lambda error: type(error).__name__)
def test_what_the_machine_lacks_is_one_line_and_exit_code_3(capsys, monkeypatch, error):
    raising(monkeypatch, error)
    code, err = run(capsys, "tokenize", "x", "--out", "y")
    assert code == cli.STOPPED and len(err) == 1 and "What was finished is kept" in err[0]


def test_a_reader_of_the_output_that_goes_away_is_exit_code_3():
    readable, writable = os.pipe()
    os.close(readable)
    command = [sys.executable, "-m", "encodec_fast", "info"]
    done = subprocess.run(command, stdout=writable, stderr=subprocess.PIPE, text=True)
    os.close(writable)
    assert done.returncode == cli.STOPPED, done.stderr
    assert done.stderr.count("\n") == 1 and "standard output was closed" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_end_what_the_first_one_began(first):
    finished = False
    with ending_on_signals():
        try:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), first)
            for again in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), again)
            finished = True
        except KeyboardInterrupt:
            pass
    assert finished


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_command_ends_on_a_signal_as_its_help_says(capsys, monkeypatch, how):
    monkeypatch.setattr(pretrained, "load_model", lambda *_: os.kill(os.getpid(), how))
    code, err = run(capsys, "convert", "demo", "--out", "unused")
    assert code == cli.INTERRUPTED and err[-1] == "encodec-fast: interrupted."


RESUMING = ("compress", "decode", "decompress", "tokenize", "train", "train-lm")


@pytest.mark.parametrize("name", [*RESUMING, "convert", "info", "stats", "verify"])
def test_the_help_of_commands_that_go_on_where_they_stopped_says_so(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    cli.main([name, "--help"])
    assert ("what was finished is kept, and the same command goes on" in capsys.readouterr().out) == (name in RESUMING)


def test_a_full_disk_under_a_command_that_does_not_go_on_promises_nothing(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "y")

    monkeypatch.setattr(pretrained, "load_model", full)
    code, err = run(capsys, "convert", "demo", "--out", "unused")
    assert code == cli.STOPPED and err == ["encodec-fast: y: No space left on device."]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


def chained(*errors):
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


LOST = RayError("The node died.\n  details\nIt ran out of memory.")
RAISED = {
    "a node": ([Exception("outer"), LOST], LOST),
    "what a task waited for": ([RayTaskError("trace"), LOST], LOST),
    "a bug": ([RayTaskError("in the stage"), ZeroDivisionError()], None),
}


@pytest.mark.parametrize("errors, lost", RAISED.values(), ids=RAISED)
def test_the_loss_of_a_node_is_told_from_a_bug(errors, lost):
    assert _loss(SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError), chained(*errors)) is lost


def test_a_cluster_that_can_not_go_on_is_said_in_ray_s_words():
    def rows():
        yield {}
        raise LOST

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))
    with pytest.raises(RayLost, match=r"the Ray cluster could not go on: The node died. ... It ran out of memory\.$"):
        list(_noticing_loss(ray, rows()))


def test_a_lost_cluster_is_exit_code_3(tmp_path):
    with pytest.raises(Stopped, match=r"could not go on\. What was finished is kept"), naming_ends(), naming_stops(tmp_path):
        raise RayLost("the Ray cluster could not go on.")
