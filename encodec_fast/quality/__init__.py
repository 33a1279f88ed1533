"""How good a model's audio is at each bandwidth: measures of it, their table, and a page to listen to."""

from encodec_fast.quality.measurement import BandwidthQuality, QualityReport, measure
from encodec_fast.quality.metrics import mel_distance, pesq, si_snr, stoi

__all__ = ["BandwidthQuality", "QualityReport", "measure", "mel_distance", "pesq", "si_snr", "stoi"]
