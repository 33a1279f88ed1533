"""`python -m encodec_fast`."""

import sys

from encodec_fast.cli import main

sys.exit(main())
