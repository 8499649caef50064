"""What comes from outside: files opened safely, content within bounds, numbers typed as words, and safe text."""
