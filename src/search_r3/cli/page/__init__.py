"""What a run, a sweep or an evaluation has come to, as one HTML file that needs nothing else."""
