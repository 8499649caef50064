"""`python -m moe_eval.harness ARGUMENTS`: the lm_eval command where the start-up hook does not run."""

from __future__ import annotations

import sys

from moe_eval.harness import plugin


def main() -> None:
    try:
        import lm_eval
    except ImportError:
        sys.exit("moe_eval: lm-evaluation-harness is not installed; run pip install 'lm-eval[hf]'.")
    failed = plugin.attach_all()
    if failed:
        what = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        sys.exit(f"moe_eval: this lm-eval ({lm_eval.__version__}) has changed where moe_eval attaches to it ({what}).")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
