"""How a config checks itself: all that is wrong with it in one error."""

from collections.abc import Sequence


def raise_all(part: str, rules: Sequence[tuple[bool, str]]) -> None:
    """Raise for the rules that do not hold.

    Args:
        part: what the config describes, as the error calls it.
        rules: whether each holds, and what to say where it does not.

    Raises:
        ValueError: any of them does not hold; all are said.
    """
    broken = [rule for holds, rule in rules if not holds]
    if broken:
        raise ValueError(f"{part}: " + "; ".join(broken))


def choices(**values: tuple[str, tuple[str, ...]]) -> list[tuple[bool, str]]:
    """Make rules for fields with a few values, in configs that nothing type-checks."""
    return [
        (value in allowed, f"{name} {value!r} is none of {allowed}")
        for name, (value, allowed) in values.items()
    ]
