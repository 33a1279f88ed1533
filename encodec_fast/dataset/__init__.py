"""Large sets of audio to codes, in runs that can end at any moment and go on. `tokenize.py` is the entrance.

    corpus tasks ── Schedule: batches, longest first, fixed once ──> Reader (processes) ──> ClipEncoder ──> ShardWriter ──> shards
                                          └──────────── Ledger: which batches are done, which clips failed ────────────┘

A batch is the unit of determinism: which clips run together is decided before anything runs, from the sources and options alone.
So codes don't depend on how a run was split, interrupted or parallelised. A shard is the unit of durability: it appears whole, and
then the ledger says which batches it holds. A task is one clip's work: where its audio lies and how to open it.
"""
