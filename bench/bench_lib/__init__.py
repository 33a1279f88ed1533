"""What every benchmark shares: cases, contenders, the measurement, the check of answers, floors and results."""
