"""A run of the tokenizer: what it writes, whatever its sources, its split and what was done before."""

import dataclasses

import pytest

from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.dataset import run
from encodec_fast.dataset.encoding import ClipEncoder
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.formats import FORMATS
from encodec_fast.formats.folder import count_rows, load_codes, read_ids, shard_paths
from support.corpora import CHUNKED, LENGTHS, RATE, SMALL, content, put_clip, put_corpus, put_mixed, small_model, tokenize
from support.models import pair, small_config


@pytest.fixture(scope="module", params=[{}, CHUNKED], ids=["streamable", "chunked"])
def models(request):
    return pair(small_config(**{**SMALL, **request.param}))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def corpus(tmp_path):
    return put_mixed(tmp_path / "corpus")


def test_a_run_writes_every_good_clip_once_longest_first_and_reports_every_bad_one(corpus, model, tmp_path):
    seen = []
    out = tmp_path / "codes"
    summary = tokenize(model, [corpus], out, batch_seconds=2.0, progress=lambda so_far: seen.append(so_far.clips + len(so_far.failures)))
    assert sorted(read_ids(out)) == [f"{index:04d}.wav" for index in range(8)]
    lengths = [row.num_samples for row in load_codes(out)]
    assert lengths == sorted(lengths, reverse=True)
    assert [failure.id for failure in read_failures(out)] == ["4b.wav", "6b.wav"]
    assert sorted(summary.failures, key=lambda failure: failure.id) == read_failures(out)
    assert (summary.clips, seen[-1]) == (8, 10) and seen == sorted(seen)
    assert summary.seconds == pytest.approx(sum(row.duration for row in load_codes(out)))
    assert (summary.planned_clips, summary.left, summary.done_before) == (10, 0, 0)


@pytest.mark.parametrize("changes", [{"workers": 3}, {"rows_per_shard": 1}, {"prefetch_seconds": 0.001}, {"shard_seconds": 0.0}])
def test_how_it_is_run_does_not_change_a_row(corpus, model, tmp_path, changes):
    tokenize(model, [corpus], tmp_path / "one", batch_seconds=2.0)
    tokenize(model, [corpus], tmp_path / "other", batch_seconds=2.0, **changes)
    assert content(tmp_path / "one") == content(tmp_path / "other") and len(content(tmp_path / "one")) == 8


@pytest.mark.parametrize("most, seconds", [(1, 60.0), (2, 60.0), (5, 60.0), (4, 2.0)])
def test_no_shard_has_more_clips_than_asked_for(corpus, model, tmp_path, most, seconds):
    summary = tokenize(model, [corpus], tmp_path, rows_per_shard=most, batch_seconds=seconds)
    clips = [count_rows(path) for path in summary.files]
    assert max(clips) <= most and sum(clips) == summary.clips > 5
    assert seconds < 60 or clips[0] == most


def test_long_clips_run_in_pieces_and_give_the_same_rows(corpus, models, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "BLOCK_SECONDS", 0.7)
    _, model = models
    bandwidth = model.config.target_bandwidths[0]
    tokenize(model, [corpus], tmp_path / "whole", bandwidth=bandwidth)
    tokenize(model, [corpus], tmp_path / "pieces", bandwidth=bandwidth, long_clip_seconds=1.5, workers=2)
    assert content(tmp_path / "whole") == content(tmp_path / "pieces")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_the_same_rows(corpus, model, tmp_path, format):
    tokenize(model, [corpus], tmp_path / format, format=format, rows_per_shard=3, batch_seconds=1.0)
    tokenize(model, [corpus], tmp_path / "whole")
    assert len(shard_paths(tmp_path / format)) > 1
    assert content(tmp_path / format) == content(tmp_path / "whole")


def test_the_splits_of_a_run_together_are_the_run(corpus, model, tmp_path):
    tokenize(model, [corpus], tmp_path / "one", batch_seconds=1.0)
    first = tokenize(model, [corpus], tmp_path / "three", index=2, count=3, batch_seconds=1.0)
    assert 0 < first.clips + len(first.failures) < 10 and first.left == 10 - first.planned_clips
    for index in (0, 1):
        tokenize(model, [corpus], tmp_path / "three", index=index, count=3, batch_seconds=1.0)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert read_failures(tmp_path / "one") == read_failures(tmp_path / "three")


def test_a_run_that_was_split_goes_on_with_another_split(corpus, model, tmp_path):
    tokenize(model, [corpus], tmp_path / "one", batch_seconds=1.0)
    tokenize(model, [corpus], tmp_path / "other", index=1, count=3, batch_seconds=1.0)
    tokenize(model, [corpus], tmp_path / "other", batch_seconds=1.0)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_a_finished_run_has_nothing_left_to_do(corpus, model, tmp_path):
    tokenize(model, [corpus], tmp_path / "codes")
    before = {path.name: path.stat().st_mtime_ns for path in shard_paths(tmp_path / "codes")}
    summary = tokenize(model, [corpus], tmp_path / "codes")
    assert (summary.clips, summary.planned_clips, summary.done_before) == (0, 0, 10)
    assert {path.name: path.stat().st_mtime_ns for path in shard_paths(tmp_path / "codes")} == before


def test_clips_that_are_new_in_the_sources_are_added_and_the_old_ones_left_alone(corpus, model, tmp_path):
    tokenize(model, [corpus], tmp_path / "codes")
    put_clip(corpus / "new.wav", 4321)
    summary = tokenize(model, [corpus], tmp_path / "codes")
    assert (summary.clips, summary.done_before) == (1, 10)
    tokenize(model, [corpus], tmp_path / "at once")
    assert content(tmp_path / "codes") == content(tmp_path / "at once")


def test_a_limit_takes_the_first_ids_and_the_rest_can_follow(corpus, model, tmp_path):
    assert tokenize(model, [corpus], tmp_path / "codes", limit=3).clips == 3
    assert sorted(content(tmp_path / "codes")) == ["0000.wav", "0001.wav", "0002.wav"]
    assert tokenize(model, [corpus], tmp_path / "codes").clips == 5


def test_failed_clips_are_tried_again_only_when_asked(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out)
    put_clip(corpus / "4b.wav", 3000)
    assert tokenize(model, [corpus], out).clips == 0 and len(read_failures(out)) == 2
    again = tokenize(model, [corpus], out, retry_failed=True)
    assert (again.clips, len(again.failures)) == (1, 1)
    assert [failure.id for failure in read_failures(out)] == ["6b.wav"] and "4b.wav" in content(out)
    put_clip(corpus / "6b.wav", 3000)
    tokenize(model, [corpus], out, retry_failed=True)
    assert read_failures(out) == [] and not (out / "errors.parquet").exists() and len(content(out)) == 10


def test_each_bad_line_of_a_manifest_is_listed_once_also_one_that_is_new(corpus, model, tmp_path):
    manifest, out = corpus / "m.jsonl", tmp_path / "codes"
    lines = ['{"path": "0000.wav"}', "{}", '{"path": "0001.wav"}']
    for more in ([], [], ["[]", '{"path": "0002.wav"}', "{}"], []):
        lines += more
        manifest.write_text("\n".join(lines))
        tokenize(model, [manifest], out)
    assert [failure.id for failure in read_failures(out)] == ["m.jsonl:2", "m.jsonl:4", "m.jsonl:6"] and len(content(out)) == 3


def test_a_bad_line_that_a_schedule_holds_without_its_number_is_known(tmp_path):
    (tmp_path / "m.jsonl").write_text("{}\n{}\n")
    first, second = find_tasks([tmp_path / "m.jsonl"])
    ledger = Ledger(tmp_path / "codes")
    with ledger.planning():
        ledger.add_schedule([dataclasses.replace(first, row=None)], 60.0)
        assert ledger.new_tasks([first, second]) == [second]


def test_a_retry_opens_audio_and_no_manifest_or_archive_that_is_damaged(corpus, model, tmp_path):
    (corpus / "m.jsonl").write_text('{"path": "4b.wav"}\n{}\n')
    (corpus / "t.tar").write_bytes((corpus / "0000.wav").read_bytes())
    sources, out = [corpus / "m.jsonl", corpus / "t.tar"], tmp_path / "codes"
    tokenize(model, sources, out)
    before = {failure.id: failure.reason for failure in read_failures(out)}
    assert list(before) == ["4b.wav", "m.jsonl:2", "t.tar@0"]
    put_clip(corpus / "4b.wav", 3000)
    tokenize(model, sources, out, retry_failed=True)
    del before["4b.wav"]
    assert {failure.id: failure.reason for failure in read_failures(out)} == before and list(content(out)) == ["4b.wav"]


def test_a_retry_that_was_killed_and_is_repeated_gives_each_clip_one_row(corpus, model, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out)
    put_clip(corpus / "4b.wav", 3000)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(model, [corpus], out, retry_failed=True)
    tokenize(model, [corpus], out, retry_failed=True)
    assert "4b.wav" in content(out) and len(content(out)) == 9


def test_processes_that_retry_together_give_each_clip_one_row(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out)
    put_clip(corpus / "4b.wav", 3000)
    # the first one plans the batch of the second
    for index in (0, 1, 0):
        tokenize(model, [corpus], out, index=index, count=2, retry_failed=True)
    assert "4b.wav" in content(out) and len(content(out)) == 9


def test_a_clip_retried_beside_batches_of_the_schedule_before_counts_as_done(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, index=0, count=2, batch_seconds=2.0)
    assert [failure.id for failure in read_failures(out)] == ["4b.wav", "6b.wav"] and Ledger(out).undone().tolist() == [1, 3]
    put_clip(corpus / "4b.wav", 3000)
    tokenize(model, [corpus], out, batch_seconds=2.0, retry_failed=True)
    assert [1, 3, 5] in [record.batches for record in Ledger(out).records()]
    assert [failure.id for failure in read_failures(out)] == ["6b.wav"]
    tokenize(model, [corpus], out, batch_seconds=2.0, retry_failed=True)
    assert "4b.wav" in content(out) and len(content(out)) == 9


def test_a_shard_with_batches_of_two_later_schedules_leaves_the_failures_as_they_are(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out)
    for name in ("new", "newer"):
        put_clip(corpus / f"{name}.wav", 4321)
        tokenize(model, [corpus], out, index=3, count=4)
    tokenize(model, [corpus], out)
    assert [1, 2] in [record.batches for record in Ledger(out).records()]
    assert [failure.id for failure in read_failures(out)] == ["4b.wav", "6b.wav"] and len(content(out)) == 10


def test_a_share_of_the_clips_is_compared_with_hugging_face(corpus, models, tmp_path):
    _, model = models
    summary = tokenize(model, [corpus], tmp_path / "codes", bandwidth=model.config.target_bandwidths[0], verify_share=1.0)
    counts = summary.verified
    assert (counts["clips"], counts["failed"], counts["changed"]) == (8, 0, 0) and counts["codes"] > 0
    (record,) = Ledger(tmp_path / "codes").records()
    assert record.verified == counts


def test_a_comparison_sees_codes_that_are_not_those_of_the_clip(corpus, model, tmp_path, monkeypatch):
    encode = ClipEncoder.encode

    def swapped(self, *arguments):
        rows = encode(self, *arguments)
        return [dataclasses.replace(row, codes=row.codes ^ 1) for row in rows]

    monkeypatch.setattr(ClipEncoder, "encode", swapped)
    assert tokenize(model, [corpus], tmp_path / "codes", verify_share=1.0).verified["changed"] > 0


def test_scanning_gives_lengths_from_the_headers(corpus):
    tasks = scan_seconds(find_tasks([corpus]))
    assert [round(task.seconds * RATE) for task in tasks if task.problem is None] == LENGTHS
    assert [task.problem is None for task in tasks] == [True] * 8 + [False] * 2


def test_a_config_of_tuples_is_the_same_config_the_next_time(tmp_path):
    model = small_model()
    model.config.upsampling_ratios = tuple(model.config.upsampling_ratios)
    folder = put_corpus(tmp_path / "corpus", [900, 400])
    assert tokenize(model, [folder], tmp_path / "out").clips == 2
    assert tokenize(model, [folder], tmp_path / "out").clips == 0
