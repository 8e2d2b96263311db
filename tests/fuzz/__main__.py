"""Feed damaged files and requests to every reader, and list what is neither read nor refused.

    python -m tests.fuzz --inputs 1000             1000 inputs for each reader
    python -m tests.fuzz photo recipe --inputs 100000 --seed 1
    python -m tests.fuzz photo --only 4711 --seed 1     one input again, with its traceback

A reader runs in a process of its own. A finding is an exception that the reader does not promise, a
death of the process, more than 5 s, more than 1 GB, a call of the system, or a reason that nobody
can read.
"""

import argparse
import logging
import tempfile
from pathlib import Path

from tests.fuzz.run import HEADER, add_up, format_findings, format_row, make_input, run_apart


def main() -> None:
    """Run the readers that are named, and print a table."""
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("readers", nargs="*", metavar="READER", help="all, if none is named")
    parser.add_argument("--inputs", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one input to read")
    parser.add_argument("--seconds", type=float, default=1e9, help="longest time for a reader")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:  # noqa: S108
        from tests.fuzz.readers import make_readers

        makers = make_readers(Path(name))
        if unknown := [each for each in args.readers if each not in makers]:
            parser.error(f"no reader {', '.join(unknown)}; there are: {', '.join(makers)}")
        chosen = args.readers or list(makers)
        if args.only is not None:
            reader = makers[chosen[0]]()
            data = make_input(reader, chosen[0], seed=args.seed, number=args.only)
            print(data[:2000])
            print("accepted" if reader.read(data) else "problems counted")
            return
        print(HEADER)
        reports = []
        for each in chosen:
            report = run_apart(
                each, makers[each], inputs=args.inputs, seed=args.seed, seconds=args.seconds
            )
            print(format_row(report), flush=True)
            print(format_findings(report), end="", flush=True)
            reports.append(report)
    print(format_row(add_up(reports)))
    raise SystemExit(any(each.findings for each in reports))


if __name__ == "__main__":
    main()
