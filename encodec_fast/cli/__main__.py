"""`python -m encodec_fast.cli`."""

import sys

from encodec_fast.cli import main

sys.exit(main())
