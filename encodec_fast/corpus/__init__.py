"""What is to be tokenized, as a list of tasks, and the processes that read it. No torch: reading processes start in a moment."""
