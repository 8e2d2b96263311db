"""How the rules of a recipe are held: all broken ones in one error, and no secret in a URI."""

from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import RecipeError


def raise_all(part: str, rules: list[tuple[bool, str]]) -> None:
    """Raise RecipeError with the text of every rule that does not hold, after the part's name."""
    broken = [rule for holds, rule in rules if not holds]
    if broken:
        raise RecipeError(f"{part}: " + "; ".join(broken))


def holds_secret(uri: str) -> bool:
    """Tell whether a URI has a password, or a parameter that is named like a secret."""
    parts = urlsplit(uri)
    names = [name.lower() for name, _ in parse_qsl(parts.query)]
    secret = ("password", "secret", "token", "key")
    return parts.password is not None or any(part in name for name in names for part in secret)
