"""Stored codes that are damaged or forged: an error for each row that is, the rest read, and no memory for what is not there."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from encodec_fast import cli
from encodec_fast.audio.wav import is_own_wav
from encodec_fast.dataset.decoding import StoredRows, decode
from encodec_fast.formats import ClipFailure, ClipRow, FormatError, ecdc
from encodec_fast.formats.atomic import inside
from encodec_fast.formats.folder import load_codes, read_rows, shard_paths
from encodec_fast.formats.records import info_of, info_record, load_npy, row_record
from support.corpora import content, put_three, small_model, tokenize
from support.rows import INFO, KINDS, row, write


@pytest.fixture(scope="module")
def model():
    return small_model()


FORGED = {
    "id": [None, 5],
    "path": [None],
    "codes_shape": [None, [1, 8], [1, 8, 74], [1, 8, 76], [-1, -8, 75], [1 << 20, 1 << 20, 1 << 10], [1, None, 75], "x"],
    "num_samples": [None, 0, -1, True],
    "last_frame_pad_length": [None, -1, 75],
    "sampling_rate": [None, 0, -24_000],
    "original_rate": [None, 0],
    "bandwidth": [None, 0.0, float("nan"), float("inf")],
    "scales": [[1.0, 2.0], [float("nan")]],
}
# A column of numbers holds nothing else.
NOT_IN_TABLES = [("id", 5), ("codes_shape", "x"), ("num_samples", True)]
CASES = [
    (*kind, name, value)
    for name, values in FORGED.items()
    for value in values
    for kind in KINDS
    if kind[0] != "parquet" or not any(name == other and value is forbidden for other, forbidden in NOT_IN_TABLES)
]


def forge(path, name, value, index):
    """Writes a field of one row, whatever it is, into a shard of three."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        records = table.to_pylist()
        records[index][name] = value
        fields = [field.with_nullable(True) for field in table.schema]
        fields = [pa.field(f.name, pa.list_(pa.int64())) if f.name == "codes_shape" else f for f in fields]
        pq.write_table(pa.Table.from_pylist(records, pa.schema(fields, table.schema.metadata)), path)
    elif path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        records[index][name] = value
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".ecdc":
        forge_frame(path, name, value, index)
    else:
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]
            headers = tar.pax_headers
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
            for number, (member, data) in enumerate(members):
                if number == 2 * index + 1:
                    data = json.dumps({**json.loads(data), name: value}).encode()
                fresh = tarfile.TarInfo(member.name)
                fresh.size = len(data)
                tar.addfile(fresh, io.BytesIO(data))


def forge_frame(path, name, value, index):
    """As `forge`, in a shard of frames, with right checksums."""
    rows = list(ecdc.read_rows(path))
    shard = ecdc.Shard(path.parent, "part-00000099", ecdc.read_shard_info(path))
    with pytest.MonkeyPatch.context() as patch:
        for number, each in enumerate(rows):
            changes = {name: value} if number == index else {}
            patch.setattr(ecdc, "row_record", lambda row, changes=changes: {**row_record(row), **changes})
            shard.write(each)
    shard.finish().replace(path)


@pytest.mark.parametrize("format, packed, name, value", CASES, ids=["-".join(map(str, case))[:50] for case in CASES])
def test_a_forged_field_costs_its_own_row_only(tmp_path, format, packed, name, value):
    rows = [row(index) for index in range(3)]
    path = write(tmp_path, rows, format, packed)
    forge(path, name, value, 1)
    read = list(read_rows(path))
    assert [type(each) for each in read] == [ClipRow, ClipFailure, ClipRow]
    assert np.array_equal(read[0].codes, rows[0].codes) and np.array_equal(read[2].codes, rows[2].codes)
    with pytest.raises(FormatError, match="damaged"):
        list(load_codes(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codebook_size", 1e24),
        ("codebook_size", True),
        ("codebook_size", 0),
        ("codebook_size", 1 << 40),
        ("weights_sha256", 5),
        ("options", []),
    ],
)
def test_what_made_the_codes_has_the_types_it_was_written_with(name, value):
    with pytest.raises(FormatError, match=f"a-shard: what made its codes can't be read .{name} is"):
        info_of({**info_record(INFO), name: value}, Path("a-shard"))


def forge_codes(path, change):
    """Gives the codes of the second of three rows other numbers."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        codes = table["codes"].to_pylist()
        codes[1] = change(codes[1])
        signed = pa.binary() if isinstance(codes[0], bytes) else pa.list_(pa.int64())
        pq.write_table(table.set_column(2, "codes", pa.array(codes, signed)).replace_schema_metadata(table.schema.metadata), path)
        return
    record = json.loads(path.read_text().splitlines()[1])
    target = path.parent / record["npy"]
    np.save(target, np.array(change(np.load(target).ravel().tolist())).reshape(1, 8, -1))
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({key: value for key, value in record.items() if key != "npy_crc32"})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "kind, packed, change",
    [
        ("parquet", False, lambda codes: [-1, *codes[1:]]),
        ("parquet", False, lambda codes: codes[:-8]),
        ("parquet", False, lambda codes: None),
        ("parquet", True, lambda codes: codes[:10]),
        ("parquet", True, lambda codes: codes + b"\0"),
        ("parquet", True, lambda codes: None),
        ("npy", False, lambda codes: [-1, *codes[1:]]),
        ("npy", False, lambda codes: [0.5, *codes[1:]]),
        ("npy", False, lambda codes: codes[:-8]),
    ],
    ids=["negative", "short", "null", "packed short", "packed long", "packed null", "npy negative", "npy float", "npy short"],
)
def test_codes_that_are_none_are_no_row(tmp_path, kind, packed, change):
    path = write(tmp_path, [row(index) for index in range(3)], kind, packed)
    forge_codes(path, change)
    assert [type(each) for each in read_rows(path)] == [ClipRow, ClipFailure, ClipRow]


def test_an_array_that_announces_more_than_it_holds_takes_no_memory():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    with pytest.raises(ValueError, match="announced"):
        load_npy(file.getvalue() + b"\0" * 64)


@pytest.mark.parametrize("format, packed", KINDS)
def test_a_flipped_bit_gives_an_error_or_the_same_rows_and_never_fewer(tmp_path, format, packed):
    path = write(tmp_path, [row(index, (1, 2, 9)) for index in range(3)], format, packed)
    whole, data = list(read_rows(path)), path.read_bytes()
    bits = random.Random(0)
    # of a Parquet shard the footer: its pages carry no checksum, which is what the ledger's is for
    first = len(data) - 1500 if format == "parquet" else 0
    outcomes = {"error": 0, "failure": 0, "other row": 0, "same": 0}
    for place in range(max(0, first), len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        try:
            read = list(read_rows(path))
        except FormatError:
            outcomes["error"] += 1
            continue
        failed = any(isinstance(each, ClipFailure) for each in read)
        assert failed or len(read) == len(whole), place
        same = not failed and all(one.id == other.id and np.array_equal(one.codes, other.codes) for one, other in zip(read, whole))
        outcomes["failure" if failed else "same" if same else "other row"] += 1
    assert outcomes["error"] + outcomes["failure"] > 50, outcomes


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "link/x", "", "a\0b", None, 5, "codes/../../x"])
def test_a_name_out_of_a_file_stays_in_its_folder(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"outside|no name"):
        inside(tmp_path / "out", name)


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """(folder of the model, codes of three clips in three shards)."""
    folder = tmp_path_factory.mktemp("stored")
    model.save_pretrained(folder / "model")
    tokenize(model, [put_three(folder / "corpus")], folder / "codes", rows_per_shard=1, batch_seconds=0.1)
    return folder


def test_decode_names_each_damaged_row_or_shard_and_decodes_the_rest(stored, tmp_path, capsys):
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    shutil.copytree(stored / "codes", codes)
    first, second, _ = shard_paths(codes)
    data = bytearray(second.read_bytes())
    data[100:160] = bytes(60)
    second.write_bytes(data)
    forge(first, "num_samples", 0, 0)
    code = cli.main(["decode", str(codes), "--out", str(wavs), "--model", str(stored / "model")])
    err = capsys.readouterr().err
    assert code == cli.CLIPS_FAILED and "2 of the clips failed:" in err and "num_samples is 0" in err
    assert len(list(wavs.glob("*.wav"))) == 1 and "Traceback" not in err


def test_decode_gives_a_failure_for_every_row_of_a_shard_that_can_not_be_read_on(stored, model, tmp_path):
    tokenize(model, [stored / "corpus"], tmp_path, format="webdataset", batch_seconds=0.1)
    (shard,) = shard_paths(tmp_path)
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in (1, 700, end // 2, end):
        shard.write_bytes(whole[:size])
        try:
            rows = StoredRows(tmp_path)
        except FormatError:
            continue
        decoded = list(decode(model, rows))
        assert len(decoded) == len(rows.ids) and isinstance(decoded[-1][0], ClipFailure)


def test_ids_are_printed_without_what_a_terminal_would_obey(stored, tmp_path, capsys):
    codes = tmp_path / "codes"
    shutil.copytree(stored / "codes", codes)
    forge(shard_paths(codes)[0], "num_samples", 0, 0)
    forge(shard_paths(codes)[0], "id", "\x1b[2Jevil\x07\u202e", 0)
    cli.main(["decode", str(codes), "--out", str(tmp_path / "wavs"), "--model", str(stored / "model")])
    err = capsys.readouterr().err
    assert "\\x1b[2Jevil\\x07\\u202e" in err and not {"\x1b", "\x07", "\u202e"} & set(err)


def test_the_rows_of_sound_codes_are_what_they_were(stored, model):
    assert {each.id for each in StoredRows(stored / "codes")} == set(content(stored / "codes"))


def decode_command(folder, codes, wavs, capsys, *more):
    """(exit code, standard error) of decoding with the model that made the codes."""
    code = cli.main(["decode", str(codes), "--out", str(wavs), "--model", str(folder / "model"), *more])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("damage", ["gone", "cut", "fewer rows"])
def test_decode_misses_what_the_ledger_counts(stored, tmp_path, capsys, damage):
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    shutil.copytree(stored / "codes", codes)
    second = shard_paths(codes)[1]
    if damage == "gone":
        second.unlink()
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-20])
    else:
        table = pq.read_table(second)
        pq.write_table(table.slice(0, 0), second)
    code, err = decode_command(stored, codes, wavs, capsys)
    assert code == cli.CLIPS_FAILED and second.name in err and "Traceback" not in err and "1 of the clips failed" in err
    assert len(list(wavs.glob("*.wav"))) == 2


def test_decode_replaces_only_what_decode_wrote(stored, tmp_path, capsys):
    wavs, victim = tmp_path / "wavs", tmp_path / "victim.wav"
    assert decode_command(stored, stored / "codes", wavs, capsys)[0] == cli.OK
    target = sorted(wavs.glob("*.wav"))[1]
    assert is_own_wav(target)
    victim.write_bytes(b"dear to somebody")
    soundfile.write(tmp_path / "song.wav", np.zeros(100), 2400)
    contents = [(tmp_path / "song.wav").read_bytes(), b"", b"RIFF"]
    for content_there in contents:
        target.write_bytes(content_there)
        code, err = decode_command(stored, stored / "codes", wavs, capsys, "--overwrite")
        assert code == cli.WRONG_ARGUMENT and "is not replaced" in err
        assert target.read_bytes() == content_there
    target.unlink()
    target.symlink_to(victim)
    assert decode_command(stored, stored / "codes", wavs, capsys, "--overwrite")[0] == cli.WRONG_ARGUMENT
    assert victim.read_bytes() == b"dear to somebody"
    target.unlink()
    assert decode_command(stored, stored / "codes", wavs, capsys, "--overwrite")[0] == cli.OK


def test_audio_that_is_not_finite_is_a_failure(stored, model, monkeypatch):
    decode_batch = model.decode_batch
    monkeypatch.setattr(model, "decode_batch", lambda clips: [audio * float("inf") for audio in decode_batch(clips)])
    for _, audio in decode(model, StoredRows(stored / "codes")):
        assert isinstance(audio, str) and "finite" in audio
