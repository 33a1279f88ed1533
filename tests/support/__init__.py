"""What several tests share. Processes that tests start import it, too."""

import sys
from pathlib import Path

# Drawn models are a tool of the benchmarks; last, for its other names are common words.
sys.path.append(str(Path(__file__).parents[2] / "bench"))
