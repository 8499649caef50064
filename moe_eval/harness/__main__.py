"""`python -m moe_eval.harness ARGUMENTS`: the lm_eval command without the start-up hook."""

from __future__ import annotations

import sys

from moe_eval.harness import plugin


def main() -> None:
    try:
        import lm_eval
    except ImportError:
        sys.exit("moe_eval: lm-evaluation-harness is not installed. Run pip install 'lm-eval[hf]'.")
    failed = plugin.attach_all()
    if failed:
        reasons = ", ".join(f"{name}: {reason}" for name, reason in failed.items())
        sys.exit(
            f"moe_eval: This lm-eval ({lm_eval.__version__}) has changed where moe_eval attaches to it ({reasons}). "
            "Install a version that moe_eval supports."
        )
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
