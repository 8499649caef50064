"""What every command can be asked, and the names of groups that several share."""

from __future__ import annotations

from moe_eval.cli.options.option import PRINTED, option
from moe_eval.frozen import frozen

INPUT, OUTPUT, VERDICT = "input", "output", "verdict"
GATE = 'such as "speed>=1.2,ln_ppl<=0.01". The exit code is 0, 1 or 2'
RECORDS = "the folder of the records"


@frozen(kw_only=True)
class OutputOptions:
    """What a command prints."""

    json: bool = option(False, "print one JSON object, and everything else on standard error", PRINTED)
    quiet: bool = option(False, "print the conclusion alone", PRINTED)
    verbose: bool = option(False, "print what engines and libraries say as well, on standard error", PRINTED)
