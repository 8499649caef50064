"""What the doubles share; imports nothing, since workers clean their environment first."""
