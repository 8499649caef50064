"""What a checkpoint is, before it is loaded."""
