"""One memory-mapped file of tokens: what a trainer reads is what was stored."""

import json

import numpy as np
import pytest

from encodec_fast import cli
from encodec_fast.dataset.token_file import export_tokens, open_tokens
from encodec_fast.formats import FormatError
from encodec_fast.formats.folder import load_codes
from encodec_fast.patterns import TokenPattern
from support.rows import INFO, row, write


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "codes"
    out.mkdir()
    rows = [row(0, shape=(1, 4, 5)), row(1, shape=(2, 4, 4)), row(2, shape=(1, 4, 1))]
    write(out, rows[:2])
    write(out, rows[2:], name="part-00000001")
    return out


@pytest.mark.parametrize("pattern", ["flatten", "coarse_first"])
@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("separator", [True, False])
@pytest.mark.parametrize("offsets", [None, False])
def test_codes_come_back_from_the_file_as_they_were_stored(folder, tmp_path, pattern, levels, separator, offsets):
    rows = list(load_codes(folder))
    export_tokens(folder, tmp_path / "a.bin", pattern=pattern, levels=levels, separator=separator, offsets=offsets)
    found = open_tokens(tmp_path / "a.bin")
    assert found.ids == [each.id for each in rows] and len(found) == 3
    for index, each in enumerate(rows):
        assert np.array_equal(found.codes(index), each.frame_codes()[:levels])
    assert np.array_equal(found[-1], found[2])
    most = found.pattern.num_codes
    assert found.vocabulary_size == most + separator and int(found.tokens.max()) < found.vocabulary_size
    assert (found.tokens == most).sum() == (3 if separator else 0)
    with pytest.raises(IndexError):
        found[3]


def test_numpy_alone_reads_the_tokens_of_a_trainer(folder, tmp_path):
    export_tokens(folder, tmp_path / "a.bin")
    tokens = np.memmap(tmp_path / "a.bin", dtype="uint16", mode="r")
    starts = np.load(tmp_path / "a.idx.npy")
    pattern = TokenPattern("flatten", 4, INFO.codebook_size)
    import torch

    expected = [token for each in load_codes(folder) for token in [*pattern.encode(torch.from_numpy(each.frame_codes())).tolist(), 4096]]
    assert tokens.tolist() == expected and starts.tolist() == [0, 21, 42, 47]
    described = json.loads((tmp_path / "a.json").read_text())
    assert described["vocabulary_size"] == 4097 and described["separator"] == 4096 and described["dtype"] == "uint16"


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    (tmp_path / "codes").mkdir()
    write(tmp_path / "codes", [row(0, shape=(1, 64, 3))])
    assert export_tokens(tmp_path / "codes", tmp_path / "a.bin").tokens.dtype == np.uint32
    assert export_tokens(tmp_path / "codes", tmp_path / "b.bin", separator=False).tokens.dtype == np.uint16


def test_columns_go_along(tmp_path):
    import dataclasses

    (tmp_path / "codes").mkdir()
    info = dataclasses.replace(INFO, columns={"text": "string"})
    write(tmp_path / "codes", [dataclasses.replace(row(0), columns={"text": "é\u2028"})], info=info)
    assert export_tokens(tmp_path / "codes", tmp_path / "a.bin").columns == [{"text": "é\u2028"}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "a.npy"}, "must end in .bin"),
        ({"pattern": "delay"}, "makes a stream per level; flatten or coarse_first make one"),
        ({"pattern": "late"}, "kind is 'late'"),
        ({"levels": 9}, r"levels is 9; ü/0\.wav has 4"),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing(folder, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        export_tokens(folder, **{"out": tmp_path / "a.bin", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_files_are_replaced_only_where_asked_and_only_our_own(folder, tmp_path):
    export_tokens(folder, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a\.bin exists already"):
        export_tokens(folder, tmp_path / "a.bin")
    assert export_tokens(folder, tmp_path / "a.bin", levels=1, overwrite=True).pattern.levels == 1
    (tmp_path / "b.bin").write_bytes(b"somebody's")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.bin is not replaced"):
        export_tokens(folder, tmp_path / "b.bin", overwrite=True)
    assert (tmp_path / "b.bin").read_bytes() == b"somebody's"


@pytest.mark.parametrize("suffix", [".bin", ".json", ".jsonl", ".idx.npy"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_file_that_is_not_whole_is_named(folder, tmp_path, suffix, damage):
    export_tokens(folder, tmp_path / "a.bin")
    path = tmp_path / f"a{suffix}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -8 if damage == "cut" else 0])
    with pytest.raises(FormatError, match=r"a\.bin: .*(can't be read|not whole)"):
        open_tokens(tmp_path / "a.bin")


def test_the_command_says_what_it_wrote(folder, tmp_path, capsys):
    assert cli.main(["export-tokens", str(folder), "--out", str(tmp_path / "a.bin"), "--levels", "2"]) == cli.OK
    assert "25 tokens, uint16, of 3 clips; vocabulary 2,049" in capsys.readouterr().out
    assert cli.main(["export-tokens", str(folder), "--out", str(tmp_path / "a.bin")]) == cli.WRONG_ARGUMENT
    assert cli.main(["export-tokens", str(folder), "--out", str(tmp_path / "a.bin"), "--overwrite", "--no-separator"]) == cli.OK
