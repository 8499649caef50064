"""Results of other tools as records: what their files state, and nothing else."""
