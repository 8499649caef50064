"""What is read, the same for all arms."""
