"""Fits the tables of frequencies of the built-in model `demo`, and writes the asset that `encodec-fast compress` begins with.

Usage, with the recordings that fit_demo_model.py takes, in a folder `data` as its first lines say, and `pip install av`:

    python bench/tools/fit_demo_tables.py data work encodec_fast/assets/demo_tables.ecdt

All recordings become clips of about ten seconds, as for the language model. `encodec-fast tokenize` makes their codes at 24 kbps, and
`fit_tables` the tables of order 1, for all 32 levels. The same machine and libraries give the same bytes again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fit_demo_language_model import tokenized
from fit_demo_model import log

import encodec_fast
from encodec_fast.compression.tables import fit_tables
from encodec_fast.demo import demo_model
from encodec_fast.plan.weights import weights_sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder in which the Debian packages are unpacked")
    parser.add_argument("work", type=Path, help="folder for clips and codes, 800 MB")
    parser.add_argument("asset", type=Path, help="the file to write")
    arguments = parser.parse_args()
    codes = tokenized(arguments.data, arguments.work, step=1, bandwidth=24)
    rows = sorted(encodec_fast.load_codes(codes), key=lambda row: row.id)
    tables = fit_tables((row.frame_codes() for row in rows), 1024, weights_sha256(demo_model()), order=1)
    arguments.asset.write_bytes(tables.to_bytes())
    log(f"asset written, {arguments.asset.stat().st_size} bytes")


if __name__ == "__main__":
    main()
