"""What is left of a distributed environment."""

import gc


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    gc.collect()
