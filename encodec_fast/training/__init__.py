"""Training of `EncodecModel` by the objective of its paper (Défossez et al. 2022, arXiv 2210.13438).

What is trained is the model itself: its weights by gradients, its codebooks in their own buffers. `save_pretrained` gives a model for
transformers at any step.
"""

from encodec_fast.training.config import TrainingConfig, read_config
from encodec_fast.training.run import TrainingStopped, TrainingSummary, train

__all__ = ["TrainingConfig", "TrainingStopped", "TrainingSummary", "read_config", "train"]
