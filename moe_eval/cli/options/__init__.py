"""What a command can be asked: one frozen dataclass a command, from which everything about its options is made."""
