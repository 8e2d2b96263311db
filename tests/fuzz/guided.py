"""Let atheris choose the inputs of a reader by the lines of our code that they reach.

    pip install atheris
    python -m tests.fuzz.guided photo --inputs 20000 --out findings

Inputs are damaged as by `python -m tests.fuzz`, but what reaches new lines is damaged further. An
input that is a finding there is a finding here; it is written to --out, because no seed repeats it.
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path
from random import Random


def main() -> None:
    """Feed one reader, print its counts, and end the process."""
    import atheris  # type: ignore[import-not-found]  # no dependency, not even of the tests

    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("reader")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("findings"), help="folder for findings")
    args = parser.parse_args()
    # Only our own lines count.
    with atheris.instrument_imports(include=["pipeline", "bsm"]):
        from tests.fuzz.readers import make_readers
        from tests.fuzz.run import HEADER, Report, feed_one, format_findings, format_row
    folder = Path(tempfile.mkdtemp())
    makers = make_readers(folder)
    if args.reader not in makers:
        parser.error(f"no reader {args.reader}; there are: {', '.join(makers)}")
    reader, report = makers[args.reader](), Report(args.reader)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(reader.samples):
        (corpus / str(number)).write_bytes(sample)

    def read(data: bytes) -> None:
        if finding := feed_one(reader, report, data, number=report.inputs):
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{args.reader}-{report.inputs}").write_bytes(data)
            print(f"{finding}: {args.out}/{args.reader}-{report.inputs}", flush=True)
        if report.inputs >= args.inputs:
            print(f"{HEADER}\n{format_row(report)}\n{format_findings(report)}", end="", flush=True)
            os._exit(bool(report.findings))  # the fuzzer has no end of its own

    def damage(data: bytes, max_bytes: int, seed: int) -> bytes:
        try:
            return reader.mutate(data, Random(seed))[:max_bytes]  # noqa: S311  not for secrets
        except Exception:  # it takes valid samples only, and this one is damaged already
            return atheris.Mutate(data, max_bytes)

    longest = 4 * max(map(len, reader.samples))
    options = [f"-seed={args.seed}", f"-max_len={longest}", "-timeout=30", "-verbosity=0"]
    atheris.Setup(["guided", *options, str(corpus)], read, custom_mutator=damage)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
