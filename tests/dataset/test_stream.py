"""CodesDataset: every row once an epoch, evenly shared whatever the shards are; orders that differ; going on where it was; batches."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import encodec_fast
from encodec_fast.dataset.sharing import Segment, blocks, dealt, rows_between, windows
from encodec_fast.dataset.stream import CodesDataset, collate
from encodec_fast.formats import FORMATS, FormatError
from encodec_fast.formats.folder import load_codes, read_ids
from encodec_fast.patterns import TokenPattern
from support.corpora import put_mixed, small_model, tokenize
from support.rows import INFO, row, write


def put_rows(folder, per_shard, format="parquet", **options):
    """A folder of shards with so many rows each; rows are numbered through."""
    folder.mkdir(exist_ok=True)
    count = 0
    for shard, rows in enumerate(per_shard):
        write(folder, [row(count + index, **options) for index in range(rows)], format, name=f"part-{shard:08d}")
        count += rows
    return folder


@pytest.fixture
def folder(tmp_path):
    return put_rows(tmp_path, [5] * 7)


def ids(dataset):
    return [each["id"] for each in dataset]


# Which rows


COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def rows_of(segments):
    return [(segment.shard, place) for segment in segments for place in range(segment.start, segment.stop)]


@given(COUNTS, st.integers(1, 20), st.integers(1, 5), st.data())
def test_blocks_hands_and_windows_hold_every_row_once(counts, block_rows, hands, data):
    whole = [(shard, place) for shard, count in enumerate(counts) for place in range(count)]
    found = blocks(counts, block_rows)
    assert rows_of(found) == whole and all(0 < each.rows <= block_rows for each in found)
    assert Counter(rows_of(dealt(found, hands))) == Counter(whole)
    groups = list(windows(found, block_rows))
    assert [each for group in groups for each in rows_of(group)] == whole
    assert all(len(rows_of(group)) == block_rows for group in groups[:-1])
    first = data.draw(st.integers(0, 2 * len(whole)))
    end = data.draw(st.integers(first, first + 2 * len(whole)))
    assert rows_of(rows_between(found, first, end)) == whole[first:end]
    if whole:
        assert rows_of(rows_between(found, first, end, len(whole))) == [whole[place % len(whole)] for place in range(first, end)]


def test_a_segment_counts_its_rows():
    assert Segment(0, 3, 7).rows == 4


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 50),
)
def test_ranks_and_workers_have_equal_shares_of_all_rows(counts, world, workers, shuffle, drop_last, buffer):
    """By numbers alone: no file is read."""
    total = sum(counts)
    if drop_last and total < world:
        return
    seen = Counter()
    sizes = set()
    for rank in range(world):
        dataset = object.__new__(CodesDataset)
        vars(dataset).update(shuffle=shuffle, buffer_size=buffer, seed=0, rank=rank, world_size=world, drop_last=drop_last)
        vars(dataset).update(_counts=counts, _num_rows=total)
        share = dataset._share(3)
        assert len(rows_of(share)) == len(dataset)
        parts = [rows_between(share, *(len(dataset) * part // max(1, workers) for part in (id, id + 1))) for id in range(max(1, workers))]
        assert [each for part in parts for each in rows_of(part)] == rows_of(share)
        sizes.add(tuple(len(rows_of(part)) for part in parts))
        seen.update(rows_of(share))
    assert len(sizes) == 1
    if drop_last:
        assert max(seen.values()) == 1 and total - len(seen) < world
    else:
        assert len(seen) == total and sum(seen.values()) - total < world and max(seen.values()) <= 1 + -(-world // total)


def test_rows_come_as_tensors_in_stored_order(folder):
    rows = list(encodec_fast.CodesDataset(folder))
    assert [each["id"] for each in rows] == read_ids(folder) == ids(CodesDataset(folder))
    assert rows[0]["audio_codes"].dtype == torch.int64 and "audio_scales" not in rows[0]
    assert np.array_equal(rows[3]["audio_codes"].numpy(), row(3).codes) and rows[3]["num_samples"] == 24_003
    assert len(CodesDataset(folder)) == 35


@pytest.mark.parametrize("buffer_size", [1, 4, 1000])
def test_a_random_order_holds_every_row_once_and_differs_between_epochs_and_seeds(folder, buffer_size):
    dataset = CodesDataset(folder, shuffle=True, buffer_size=buffer_size)
    first, second = ids(dataset), ids(dataset)
    assert sorted(first) == sorted(second) == sorted(read_ids(folder))
    assert first != second and first != read_ids(folder)
    dataset.set_epoch(0)
    assert ids(dataset) == first
    assert ids(CodesDataset(folder, shuffle=True, seed=1, buffer_size=buffer_size)) != first


def test_a_random_order_mixes_the_whole_folder(tmp_path):
    """Rows are stored by length, so a rank that got neighbours would get equal lengths."""
    put_rows(tmp_path, [200], shape=(1, 1, 1))
    places = {id: place for place, id in enumerate(read_ids(tmp_path))}
    for rank in range(4):
        own = [places[id] for id in ids(CodesDataset(tmp_path, shuffle=True, rank=rank, world_size=4))]
        assert np.mean(own) == pytest.approx(100, abs=25) and len({place // 50 for place in own}) == 4
        first = np.array(own[:25])
        assert 25 < np.mean(first) < 175 and np.abs(np.diff(own)).mean() > 30


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("per_shard", [[12, 23], [5] * 7])
def test_ranks_and_workers_share_the_rows_of_few_shards_evenly(tmp_path, shuffle, per_shard):
    put_rows(tmp_path, per_shard)
    seen, batches = [], []
    for rank in range(4):
        dataset = CodesDataset(tmp_path, shuffle=shuffle, rank=rank, world_size=4)
        loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate)
        found = [batch["id"] for batch in loader]
        assert len(dataset) == 9 == sum(map(len, found))
        batches.append(len(found))
        seen += [id for batch in found for id in batch]
    assert len(set(batches)) == 1 and len(seen) == 36
    assert sorted(set(seen)) == sorted(read_ids(tmp_path))


def test_what_can_not_be_shared_evenly_is_dropped_where_that_is_asked(folder):
    shares = [ids(CodesDataset(folder, rank=rank, world_size=4, drop_last=True)) for rank in range(4)]
    assert [len(share) for share in shares] == [8] * 4 and len(set().union(*shares)) == 32


def test_workers_that_live_on_see_the_epoch_that_is_set(folder):
    dataset = CodesDataset(folder, shuffle=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(ids(loader))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("format", FORMATS)
def test_a_share_is_that_of_the_whole_in_every_format(tmp_path, format):
    put_rows(tmp_path, [7, 9], format)
    whole = list(CodesDataset(tmp_path, shuffle=True))
    expected = {each.id: each.codes for each in load_codes(tmp_path)}
    shares = [list(CodesDataset(tmp_path, shuffle=True, rank=rank, world_size=2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == 8 and len(whole) == 16
    for each in (*whole, *shares[0], *shares[1]):
        assert np.array_equal(each["audio_codes"].numpy(), expected[each["id"]])


def test_a_folder_of_a_run_is_counted_by_its_ledger(tmp_path):
    tokenize(small_model(), [put_mixed(tmp_path / "corpus")], tmp_path / "codes", format="webdataset", rows_per_shard=3, batch_seconds=1.0)
    dataset = CodesDataset(tmp_path / "codes")
    assert len(dataset) == 8 == len(list(dataset))


def test_a_shard_that_lost_rows_since_is_named(tmp_path):
    put_rows(tmp_path, [5])
    dataset = CodesDataset(tmp_path)
    write(tmp_path, [row(0)])
    with pytest.raises(FormatError, match="has 1 rows and had 5"):
        ids(dataset)


# Going on


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("given_rows", [0, 1, 13, 34, 35])
def test_an_iteration_goes_on_where_it_was_saved(folder, shuffle, given_rows, monkeypatch):
    whole = ids(CodesDataset(folder, shuffle=shuffle, buffer_size=4))
    dataset = CodesDataset(folder, shuffle=shuffle, buffer_size=4)
    rows = iter(dataset)
    first = [next(rows)["id"] for _ in range(given_rows)]
    state = json.loads(json.dumps(dataset.state_dict()))
    other = CodesDataset(folder, shuffle=shuffle, buffer_size=4)
    other.load_state_dict(state)
    assert other.state_dict() == state
    read = []
    monkeypatch.setattr(
        CodesDataset, "_read", lambda self, segment, epoch, inner=CodesDataset._read: read.append(segment) or inner(self, segment, epoch)
    )
    assert first + ids(other) == whole
    # nothing that was given before is read again, but for the rest of its buffer or shard
    assert sum(segment.rows for segment in read) <= 35 - given_rows + 5
    # and the epoch after it is the next one
    assert ids(other) == (whole if not shuffle else ids(_at_epoch(folder, 1)))


def _at_epoch(folder, epoch):
    dataset = CodesDataset(folder, shuffle=True, buffer_size=4)
    dataset.set_epoch(epoch)
    return dataset


def test_the_state_of_another_order_is_refused(folder):
    state = CodesDataset(folder, shuffle=True).state_dict()
    with pytest.raises(ValueError, match="another order of rows: seed was 0, is 1; world_size was 1, is 2"):
        CodesDataset(folder, shuffle=True, seed=1, rank=0, world_size=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_s_loader_goes_on_with_the_batches_that_were_left(folder, workers):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        return loaders.StatefulDataLoader(
            CodesDataset(folder, shuffle=True, buffer_size=4), batch_size=3, num_workers=workers, collate_fn=collate
        )

    whole = [batch["id"] for batch in loader()]
    interrupted = loader()
    batches = iter(interrupted)
    first = [next(batches)["id"] for _ in range(5)]
    state = interrupted.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert first + [batch["id"] for batch in resumed] == whole


TRAINER = """
import json, os, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from encodec_fast import CodesDataset, collate

dist.init_process_group("gloo")
found = {}
for epoch in range(2):
    dataset = CodesDataset(sys.argv[1], shuffle=True)
    dataset.set_epoch(epoch)
    ids = []
    for batch in DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=dataset.collate):
        ids.append(batch["id"])
        # hangs where a rank has fewer batches than another
        dist.barrier()
    found[epoch] = ids
with open(os.path.join(sys.argv[2], f"{dist.get_rank()}.json"), "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_torchrun_gives_every_rank_as_many_batches(tmp_path, ranks):
    """The case that hung: two shards of very unequal size."""
    put_rows(tmp_path / "codes", [3, 24], shape=(1, 2, 9))
    (tmp_path / "train.py").write_text(TRAINER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "train.py", "codes", "."]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for epoch in ("0", "1"):
        assert len({len(each[epoch]) for each in found}) == 1
        seen = [id for each in found for batch in each[epoch] for id in batch]
        assert set(seen) == set(read_ids(tmp_path / "codes")) and len(seen) - 27 < ranks
    assert found[0]["0"] != found[0]["1"]


# Rows and batches


def test_levels_and_crops_are_pieces_of_the_stored_codes(folder):
    whole = {each.id: each.codes for each in load_codes(folder)}
    for each in CodesDataset(folder, levels=3, crop_frames=20):
        assert each["crop_start"] == 0 and np.array_equal(each["audio_codes"], whole[each["id"]][:, :3, :20])
    dataset = CodesDataset(folder, crop_frames=20, shuffle=True)
    first, second = ({each["id"]: each for each in dataset} for _ in range(2))
    assert len({each["crop_start"] for each in first.values()}) > 10
    assert any(first[id]["crop_start"] != second[id]["crop_start"] for id in first)
    for each in first.values():
        start = each["crop_start"]
        assert 0 <= start <= 55 and np.array_equal(each["audio_codes"], whole[each["id"]][:, :, start : start + 20])
    assert all(each["audio_codes"].shape == (1, 8, 75) for each in CodesDataset(folder, crop_frames=100))


def test_crops_and_batches_lay_chunks_end_to_end_without_their_padding(tmp_path):
    codes = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    stored = dataclasses.replace(row(0, shape=(2, 3, 4), scales=True), codes=codes, last_frame_pad_length=3)
    write(tmp_path, [stored])
    frames = np.concatenate([codes[0], codes[1]], axis=1)[:, :5]
    assert np.array_equal(stored.frame_codes(), frames)
    (item,) = CodesDataset(tmp_path, crop_frames=5)
    assert np.array_equal(item["audio_codes"], frames[None]) and "audio_scales" not in item and item["last_frame_pad_length"] == 0
    batch = collate(list(CodesDataset(tmp_path)))
    assert np.array_equal(batch["audio_codes"][0], frames) and batch["lengths"].tolist() == [5]
    assert torch.equal(batch["audio_scales"][0], torch.from_numpy(stored.scales))


def test_embeddings_are_cropped_and_padded_with_their_codes(tmp_path):
    values = np.arange(2 * 5 * 4, dtype=np.float16).reshape(2, 5, 4)
    stored = [
        dataclasses.replace(row(0, shape=(2, 3, 4), scales=True), last_frame_pad_length=3, embeddings=values),
        dataclasses.replace(row(1, shape=(1, 3, 2)), last_frame_pad_length=0, embeddings=values[:1, :, :2]),
    ]
    write(tmp_path, stored, info=dataclasses.replace(INFO, embedding_dim=5))
    frames = np.concatenate([values[0], values[1]], axis=1)[:, :5]
    first, second = CodesDataset(tmp_path)
    assert np.array_equal(first["embeddings"], values) and first["embeddings"].dtype == torch.float16
    batch = collate([first, second])
    assert batch["embeddings"].shape == (2, 5, 5) and np.array_equal(batch["embeddings"][0], frames)
    assert np.array_equal(batch["embeddings"][1], np.pad(values[0, :, :2], ((0, 0), (0, 3))))
    dataset = CodesDataset(tmp_path, crop_frames=2, shuffle=True)
    for item in [each for _ in range(8) for each in dataset if each["id"] == stored[0].id]:
        start = item["crop_start"]
        assert np.array_equal(item["embeddings"][0], frames[:, start : start + 2])


def test_a_batch_has_padded_codes_lengths_and_a_mask(tmp_path):
    rows = [row(0, shape=(1, 2, 5)), row(1, shape=(1, 2, 3))]
    write(tmp_path, rows)
    dataset = CodesDataset(tmp_path, pattern="delay")
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    assert batch["audio_codes"].shape == (2, 2, 5) and batch["lengths"].tolist() == [5, 3]
    assert batch["mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (batch["audio_codes"][1, :, 3:] == INFO.codebook_size).all()
    assert np.array_equal(batch["audio_codes"][1, :, :3], rows[1].codes[0])
    pattern = TokenPattern("delay", 2, INFO.codebook_size)
    assert batch["tokens"].shape == (2, 2, 6) and batch["token_lengths"].tolist() == [6, 4]
    assert (batch["tokens"][1, :, 4:] == pattern.pad_token).all() and batch["token_mask"].sum().item() == 10
    assert np.array_equal(pattern.decode(batch["tokens"][1, :, :4]), rows[1].codes[0])
    assert batch["id"] == [rows[0].id, rows[1].id] and batch["num_samples"] == [24_000, 24_001]


def test_the_loader_s_own_collate_takes_equal_rows(folder):
    (batch, *_) = DataLoader(CodesDataset(folder), batch_size=4)
    assert batch["audio_codes"].shape == (4, 1, 8, 75)


def test_rows_of_unequal_levels_are_no_batch(tmp_path):
    write(tmp_path, [row(0, shape=(1, 2, 5)), row(1, shape=(1, 4, 5))])
    with pytest.raises(ValueError, match=r"the rows have \[2, 4\] levels; choose some of them with levels="):
        collate(list(CodesDataset(tmp_path)))
    assert collate(list(CodesDataset(tmp_path, levels=2)))["audio_codes"].shape == (2, 2, 5)
    with pytest.raises(ValueError, match=r"levels is 3; ü/0\.wav has 2"):
        list(CodesDataset(tmp_path, levels=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buffer_size": 0}, "buffer_size is 0; 1 or more"),
        ({"levels": 0}, "levels is 0"),
        ({"crop_frames": -1}, "crop_frames is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2; 0 ... 1"),
        ({"pattern": "late"}, "kind is 'late'"),
        ({"world_size": 40, "drop_last": True}, "has 35 rows for 40 ranks; leave out drop_last"),
    ],
)
def test_wrong_arguments_are_named(folder, options, words):
    with pytest.raises(ValueError, match=words):
        CodesDataset(folder, **options)


def test_a_folder_without_codes_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"no part-\*\.parquet in this folder"):
        CodesDataset(tmp_path)
