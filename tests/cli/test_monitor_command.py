"""`variegrad monitor`: a table, a sentence, a strict JSON document, a report, and one line for all that is no log."""

import json
import math
import re

import pytest

from monitor.readings import ODD, a_reading
from variegrad.cli.monitor import advice
from variegrad.monitor import History


@pytest.fixture
def log(tmp_path):
    """A log of twenty readings."""
    path = tmp_path / "run.jsonl"
    write(path, [a_reading(16 * k, bound=80.0 + k, population=1500) for k in range(1, 21)])
    return path


def write(path, readings):
    history = History(path)
    for reading in readings:
        history.append(reading)
    history.close()
    return path


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def one_line(said):
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("variegrad: ")
    assert said.err.count("\n") == 1
    return said.err


def test_the_table_shows_the_latest_readings_and_a_sentence_what_they_mean(variegrad, log):
    said = variegrad("monitor", log)
    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert "the latest 12 of 20 readings" in lines[0]
    assert lines[1].split() == [
        "step",
        "B_D",
        "from",
        "to",
        "at",
        "least",
        "B",
        "efficiency",
        "steps",
        "pooled",
        "skipped",
    ]
    assert lines[2].split()[0] == "144"
    assert lines[13].split()[:6] == ["320", "100", "60.0", "200", "50.0", "64"]
    assert lines[-1] == (
        "Over steps 1–320 B_D was at least 50 examples (95% confidence). "
        "A batch of 64 was 44% to 76% efficient: probably near the limit."
    )


def test_the_json_is_one_strict_document_with_every_reading(variegrad, tmp_path):
    readings = [a_reading(16 * k, **of) for k, of in enumerate(ODD.values(), start=1)]
    said = variegrad("monitor", write(tmp_path / "run.jsonl", readings), "--json")
    assert said.code == 0
    assert said.err == ""
    found = strict(said.out)
    assert found["schema"] == "variegrad.history/1"
    assert found["count"] == len(readings)
    assert found["half_written"] is False
    assert found["readings"] == [reading.to_record() for reading in readings]


def test_the_report_is_written_and_named(variegrad, log, tmp_path):
    said = variegrad("monitor", log, "--report", tmp_path / "deep" / "report")
    assert said.code == 0
    folder = tmp_path / "deep" / "report"
    assert said.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.json", "history.png", "history.svg", "report.html",
    ]  # fmt: skip
    assert "A batch of 64 was 44% to 76% efficient: probably near the limit." in (folder / "report.html").read_text()
    with_json = variegrad("monitor", log, "--json", "--report", folder)
    strict(with_json.out)
    assert "report: " in with_json.err


def test_a_log_is_read_while_it_is_written(variegrad, tmp_path):
    history = History(tmp_path / "run.jsonl")
    for step in range(1, 4):
        history.append(a_reading(step))
    assert variegrad("monitor", history.path).code == 0
    history.append(a_reading(4))
    assert len(strict(variegrad("monitor", history.path, "--json").out)["readings"]) == 4


def test_a_half_written_last_line_is_left_out_and_said(variegrad, log):
    log.write_bytes(log.read_bytes()[:-30])
    said = variegrad("monitor", log, "--json")
    assert said.code == 0
    assert "run.jsonl ends in an incomplete line, as after a crash; that line is ignored" in said.err
    found = strict(said.out)
    assert found["half_written"] is True
    assert found["readings"][-1]["step"] == 304


def test_of_several_runs_the_last_is_shown_and_said(variegrad, log):
    write(log, [a_reading(7)])
    said = variegrad("monitor", log, "--json")
    assert "holds 2 runs; this is the last" in said.err
    assert [reading["step"] for reading in strict(said.out)["readings"]] == [7]


def test_a_very_long_log_is_thinned_and_counted(variegrad, tmp_path):
    path = write(tmp_path / "run.jsonl", [a_reading(1)])
    header, line = path.read_text().splitlines()
    # One line, many times: twice the readings that memory has room for.
    path.write_text("\n".join([header, *(line.replace('"step":1,', f'"step":{k},') for k in range(1, 10_001))]) + "\n")
    found = strict(variegrad("monitor", path, "--json").out)
    assert found["count"] == 10_000
    assert len(found["readings"]) <= 4096
    assert (found["readings"][0]["step"], found["readings"][-1]["step"]) == (1, 10_000)
    assert "of 10,000 readings" in variegrad("monitor", path).out


def test_text_in_a_log_is_not_markup(variegrad, tmp_path):
    write(tmp_path / "[red]run[.jsonl", [a_reading(1)])
    said = variegrad("monitor", tmp_path / "[red]run[.jsonl")
    assert said.code == 0
    assert "[red]run[.jsonl" in said.out


# --- bad input ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty. Has the run that writes it begun?"),
        (b"hello\n", "is not a log of Monitor"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not a log of Monitor"),
        (b"[" * 5000, "is not a log of Monitor"),
        (b'{"schema":"variegrad.monitor/2","run":"a"}\n', "has the schema 'variegrad.monitor/2'; this version"),
        (b'{"schema":"variegrad.monitor/1","run":"a"}\n', "has no reading yet"),
        (b'{"schema":"variegrad.monitor/1","ru', "has no reading yet"),
    ],
)
def test_what_is_no_log_ends_in_one_line(variegrad, tmp_path, content, message):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert message in one_line(variegrad("monitor", path, "--report", tmp_path / "report"))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'{"step": 7}', b"\x00" * 50])
def test_a_damaged_line_in_the_middle_is_named(variegrad, log, damage):
    content = log.read_bytes().split(b"\n")
    content[5] = damage
    log.write_bytes(b"\n".join(content))
    said = one_line(variegrad("monitor", log))
    assert re.search(r"run\.jsonl, line 6 is damaged: .*Nothing was changed; remove the line to continue\.", said)


def test_a_folder_is_no_log(variegrad, tmp_path):
    assert "is a folder; name a file in it" in one_line(variegrad("monitor", tmp_path))


def test_a_report_in_place_of_a_file_is_refused_before_anything_is_read(variegrad, log):
    assert "is not a folder" in one_line(variegrad("monitor", log, "--report", log))


# --- the sentence ---


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (
            {"bound": 900.0, "low": 800.0, "high": 1000.0, "lower": 790.0},
            "A batch of 64 was 93% to 94% efficient: well below the limit",
        ),
        ({"bound": 9.0, "low": 8.0, "high": 10.0, "lower": 7.0}, "10% to 14% efficient: beyond the limit"),
        ({"bound": math.inf, "high": math.inf, "lower": 50.0}, "44% to 100% efficient: undecided"),
        (ODD["undefined"], "every gradient was zero, so the batch size does not matter"),
        (ODD["cannot tell"], "Not enough readings yet (1): there is no lower bound of B_D. Let"),
        (ODD["cannot tell, bounded above"], "it is at most 200 examples (95% confidence)"),
        ({"bound": 70.0, "low": 3.0, "high": 500.0, "lower": 2.5}, "4% to 89% efficient: undecided"),
    ],
)
def test_the_sentence_says_no_more_than_is_known(of, words):
    assert words in advice(a_reading(**of))
