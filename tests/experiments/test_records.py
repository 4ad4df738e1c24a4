"""A record stands whole or not at all, under the hash of its cell, and is believed only if its content agrees."""

import json
import math

import pytest

from variegrad.experiments.records import Cell, Record, pack, read_records, write_record


def cell(**values):
    return Cell(experiment="some", version=1, values={"batch_size": 16, "seed": 0, **values})


def record(**values):
    return Record(cell=cell(**values), values={"losses": [0.5, math.inf, math.nan], "bound": 3.25}, seconds=1.5)


def test_the_key_is_a_function_of_the_content_alone():
    assert cell(r=2).key == Cell(experiment="some", version=1, values={"r": 2, "seed": 0, "batch_size": 16}).key
    others = [cell(r=4), cell(r=2, drop=0.5), Cell(experiment="some", version=2, values=dict(cell(r=2).values))]
    assert len({cell(r=2).key, *(other.key for other in others)}) == 4


def test_what_is_written_is_read(tmp_path):
    path = write_record(tmp_path, record(r=2))
    assert path.name == f"{cell(r=2).key}.json"
    found = read_records(tmp_path)
    assert found.damaged == ()
    (read,) = found.records.values()
    assert read.cell.values == cell(r=2).values
    assert read["bound"] == 3.25
    assert read["losses"][:2] == [0.5, math.inf]
    assert math.isnan(read["losses"][2])
    assert read.seconds == 1.5
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing unfinished is left


def damage_cut(path):
    path.write_text(path.read_text()[:-20])


def damage_number(path):
    path.write_text(path.read_text().replace("3.25", "3.26"))


def damage_name(path):
    path.rename(path.with_name("0" * 32 + ".json"))


def damage_schema(path):
    path.write_text(path.read_text().replace("variegrad.experiment/1", "variegrad.experiment/9"))


def damage_binary(path):
    path.write_bytes(b"\xff\xfe\x00")


def damage_list(path):
    path.write_text("[1, 2]")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_cut, ""),
        (damage_number, "does not match its digest"),
        (damage_name, "is not the hash of its cell"),
        (damage_schema, "its schema is 'variegrad.experiment/9'"),
        (damage_binary, ""),
        (damage_list, ""),
    ],
)
def test_a_damaged_record_is_named_and_not_believed(tmp_path, damage, reason):
    write_record(tmp_path, record(r=4))
    damage(write_record(tmp_path, record(r=2)))
    found = read_records(tmp_path)
    assert set(found.records) == {cell(r=4).key}
    (sentence,) = found.damaged
    assert sentence.startswith("records/")
    assert reason in sentence


def test_packing_keeps_every_record_in_one_file(tmp_path):
    for r in (1, 2, 4):
        write_record(tmp_path, record(r=r))
    before = read_records(tmp_path).records
    packed = pack(tmp_path)
    assert not (tmp_path / "records").exists()
    assert len(packed.read_text().splitlines()) == 3
    write_record(tmp_path, record(r=8))
    assert set(read_records(tmp_path).records) == {*before, cell(r=8).key}
    assert pack(tmp_path).read_text() == pack(tmp_path).read_text()
    assert len(read_records(tmp_path).records) == 4


def test_a_damaged_line_of_the_packed_file_costs_that_line_alone(tmp_path):
    for r in (1, 2, 4):
        write_record(tmp_path, record(r=r))
    packed = pack(tmp_path)
    lines = packed.read_text().splitlines()
    packed.write_text("\n".join([lines[0], lines[1][:-5], lines[2]]))
    found = read_records(tmp_path)
    assert len(found.records) == 2
    assert found.damaged[0].startswith("records.jsonl line 2")


def test_records_are_plain_json(tmp_path):
    content = json.loads(write_record(tmp_path, record()).read_text())
    assert content["values"]["losses"] == [0.5, "inf", "nan"]
    assert content["cell"]["values"]["batch_size"] == 16
