"""The folder of a run: its record, its checkpoints, its metrics, and who may write there."""
