"""The phases of bench/gpu_report.py: what one GPU can tell, each file one question."""
