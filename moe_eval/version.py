"""The version of moe_eval, which pyproject.toml reads too: to ask what is installed takes longer than all of --help."""

VERSION = "0.1.0"
