"""An OpenAI-compatible server that runs already, whoever started it: its answers count, its speed is not measured."""
