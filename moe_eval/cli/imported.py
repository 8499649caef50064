"""`moe-eval import`: results of other tools as an arm."""

from __future__ import annotations

import re

from moe_eval.checkpoint.precision import LABELS
from moe_eval.cli.options.exchange import ImportOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import make_folder
from moe_eval.errors import UsageError, no_such
from moe_eval.imports import files
from moe_eval.imports.record import Statement, record
from moe_eval.outside.words import one_line
from moe_eval.records import disk

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}")


def run(options: ImportOptions) -> Conclusion:
    """Run the subcommand.

    Raises:
        UsageError: a file cannot be imported, or the folder has a record of the arm.
    """
    if options.arm is None or not _NAME.fullmatch(options.arm):
        raise UsageError("moe-eval import needs the arm's name, of letters, digits and .+_-. Give --arm NAME.")
    if options.precision is not None and options.precision not in LABELS:
        raise UsageError(no_such("precision", options.precision, LABELS, f"Give one of {', '.join(LABELS)}."))
    for file in options.files:
        if options.files.count(file) > 1:
            raise UsageError(f"{file} is given twice. Give it once.")
    statement = Statement(options.precision, options.batch_size, options.input_len, options.output_len)
    latency = record(options.arm, {file: files.read(file) for file in options.files}, statement)
    target = options.output_dir / f"perf_{options.arm}_imported.json"
    if target.exists():
        raise UsageError(f"{target} exists already. Give another --arm or --output_dir.")
    make_folder(options.output_dir)
    disk.write_record(target, latency)
    line = f"{target}: {', '.join(shape.name for shape in latency.shapes)}."
    print(one_line(line))
    for note in latency.shapes[0].notes:
        print(one_line(f"{options.arm}: {note}."))
    return Conclusion({"file": target, **vars(latency)}, [line])
