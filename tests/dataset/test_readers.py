"""Other programs read a folder of codes, whole, whatever happened while it was written."""

import json
import shutil

import numpy as np
import pytest

from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import FOLDER, LedgerError
from encodec_fast.formats import FORMATS
from encodec_fast.formats.folder import load_codes
from support.corpora import content, put_clip, put_mixed, small_model, tokenize
from support.rows import pack


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return put_mixed(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=FORMATS)
def codes(request, model, corpus, tmp_path_factory):
    """A folder that three writers filled, with clips that failed, a shard that was set aside, and a report.

    Its lists of JSON lines are more than its shards: `datasets` takes what there is most of.
    """
    out = tmp_path_factory.mktemp(request.param)
    for index in range(3):
        tokenize(model, [corpus], out, index=index, count=3, format=request.param, batch_seconds=2.0)
    assert len(list((out / FOLDER).glob("*.jsonl"))) == 4 > len(list(out.glob("part-*"))) and len(read_failures(out)) == 2
    aside = out / FOLDER / "set-aside"
    aside.mkdir()
    shard = next(out.glob("part-*"))
    shutil.copy(shard, aside / f"{shard.name}.1")
    (out / "_report.html").write_text("<p>")
    return request.param, out


def by_datasets(path, monkeypatch, tmp_path):
    """(id, codes) of every row that `datasets.load_dataset` finds in a local folder.

    A tree of .npy files is named by its manifests: `datasets` takes "a.wav.npy" for audio.
    """
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    manifests = [str(manifest) for manifest in path.glob("**/part-*.jsonl")]
    source = {"path": "json", "data_files": manifests} if manifests else {"path": str(path)}
    for row in datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "cache")):
        if "json" in row:
            yield row["json"]["id"], np.asarray(row["codes.npy"])
        elif "npy" in row:
            yield row["id"], np.load(path / row["npy"])
        else:
            yield row["id"], np.reshape(row["codes"], row["codes_shape"])


def by_pyarrow(path):
    for row in pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist():
        yield row["id"], np.reshape(row["codes"], row["codes_shape"])


def by_pandas(path):
    for _, row in pytest.importorskip("pandas").read_parquet(path).iterrows():
        yield row["id"], np.reshape(row["codes"], row["codes_shape"])


def by_polars(path):
    for row in pytest.importorskip("polars").read_parquet(f"{path}/*.parquet").to_dicts():
        yield row["id"], np.reshape(row["codes"], row["codes_shape"])


def by_duckdb(path, pattern="*.parquet"):
    for id, codes, shape in pytest.importorskip("duckdb").sql(f"select id, codes, codes_shape from '{path}/{pattern}'").fetchall():
        yield id, np.reshape(codes, shape)


def by_duckdb_everywhere(path):
    return by_duckdb(path, "**/*.parquet")


def by_webdataset(path):
    shards = sorted(str(shard) for shard in path.glob("*.tar"))
    for sample in pytest.importorskip("webdataset").WebDataset(shards, shardshuffle=False).decode():
        yield sample["json"]["id"], sample["codes.npy"]


READERS = {
    "parquet": (by_pyarrow, by_pandas, by_polars, by_duckdb, by_duckdb_everywhere),
    "webdataset": (by_webdataset,),
    "npy": (),
    # nobody else reads them
    "ecdc": (),
}


def check(rows, out):
    found = dict(rows)
    expected = {row.id: row.codes for row in load_codes(out)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[id], codes) for id, codes in expected.items())


def test_every_reader_of_a_folder_gets_all_rows_and_no_other(codes, monkeypatch, tmp_path):
    format, out = codes
    if format != "ecdc":
        check(by_datasets(out, monkeypatch, tmp_path), out)
    for reader in READERS[format]:
        check(reader(out), out)


def test_datasets_reads_the_layout_of_a_hub_repository(codes, monkeypatch, tmp_path):
    format, out = codes
    if format == "ecdc":
        pytest.skip("`datasets` does not know entropy-coded shards")
    repository = tmp_path / "repository"
    shutil.copytree(out, repository / "data")
    (repository / "README.md").write_text("---\nlicense: mit\n---\n# Codes\n")
    if format == "npy":
        # its rows name their files below the folder of the manifest
        shutil.move(repository / "data" / "codes", repository / "codes")
    found = dict(by_datasets(repository, monkeypatch, tmp_path))
    assert found.keys() == {row.id for row in load_codes(out)}


def as_earlier_versions_wrote(out):
    """Gives a finished folder the layout of earlier versions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    failures = [json.loads(line) for line in (out / FOLDER / "errors.jsonl").read_text().splitlines()]
    (out / FOLDER / "errors.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(failures), out / "errors.parquet")
    (out / FOLDER).rename(out / "_encodec_fast")
    if (out / "_report.html").exists():
        (out / "_report.html").rename(out / "report.html")


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_of_an_earlier_version_is_read_and_goes_on_in_the_new_layout(model, tmp_path, format, monkeypatch):
    corpus, out = put_mixed(tmp_path / "corpus"), tmp_path / "codes"
    tokenize(model, [corpus], out, format=format)
    (out / "_report.html").write_text("<p>")
    before = content(out), read_failures(out)
    as_earlier_versions_wrote(out)
    assert (content(out), read_failures(out)) == before
    put_clip(corpus / "zz.wav", 3000, 5)
    summary = tokenize(model, [corpus], out, format=format)
    assert summary.clips == 1 and summary.done_before == 10
    assert read_failures(out) == before[1] and before[0].items() < content(out).items()
    names = {path.name for path in out.iterdir()}
    assert {FOLDER, "_report.html"} < names and not names & {"_encodec_fast", "errors.parquet", "report.html"}
    if format != "ecdc":
        check(by_datasets(out, monkeypatch, tmp_path), out)


def test_a_table_of_others_that_is_called_errors_stays(model, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    corpus, out = put_mixed(tmp_path / "corpus"), tmp_path / "codes"
    tokenize(model, [corpus], out)
    as_earlier_versions_wrote(out)
    pq.write_table(pa.table({"x": [1]}), out / "errors.parquet")
    tokenize(model, [corpus], out)
    assert pq.read_table(out / "errors.parquet")["x"].to_pylist() == [1] and len(read_failures(out)) == 2


def test_a_folder_at_which_an_earlier_version_is_at_work_is_left_alone(model, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    corpus, out = put_mixed(tmp_path / "corpus"), tmp_path / "codes"
    tokenize(model, [corpus], out)
    as_earlier_versions_wrote(out)
    with (out / "_encodec_fast" / "writer-0-of-1.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LedgerError, match="of an earlier version; wait for it"):
            tokenize(model, [corpus], out)
    assert (out / "errors.parquet").exists() and not (out / FOLDER).exists()


def test_packed_codes_of_an_earlier_version_are_read_and_not_added_to(model, tmp_path):
    corpus, out = put_mixed(tmp_path / "corpus"), tmp_path / "codes"
    tokenize(model, [corpus], out)
    before, run = content(out), out / FOLDER / "run.json"
    for packed in (False, True):
        run.write_text(json.dumps({**json.loads(run.read_text()), "packed": packed}))
        if packed:
            for shard in out.glob("part-*"):
                pack(shard, model.config.codebook_size)
            assert content(out) == before
            with pytest.raises(LedgerError, match=r"packed codes of an earlier version.*--overwrite"):
                tokenize(model, [corpus], out)
        else:
            assert tokenize(model, [corpus], out).clips == 0
    tokenize(model, [corpus], out, overwrite=True)
    assert content(out) == before
