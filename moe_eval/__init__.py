"""Does a lower precision of the expert GEMMs pay, end to end, and what does it cost in quality?

The Python interface: `run` measures, `compare` compares what is recorded, `read` reads it. See moe_eval.interface.
"""

TYPE_CHECKING = False  # type checkers take it for typing.TYPE_CHECKING, whose import would cost time
if TYPE_CHECKING:
    from moe_eval.interface import Results, compare, read, run

    __version__: str

__all__ = ["Results", "__version__", "compare", "read", "run"]


def __getattr__(name: str) -> object:
    """The interface, imported when it is used: `import moe_eval` alone costs nothing."""
    if name == "__version__":
        from moe_eval.cli.overview import VERSION

        return VERSION
    if name in __all__:
        from moe_eval import interface

        return getattr(interface, name)
    raise AttributeError(f"module 'moe_eval' has no attribute {name!r}")
