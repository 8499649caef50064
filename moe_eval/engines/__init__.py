"""The engines that can run a checkpoint."""
