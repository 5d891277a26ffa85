"""Questions as pairs of text, and choices between given symbols."""

from random import Random

from scripts.embedded_vlm.words import NOUNS

__all__ = ["PLACES", "Question", "by_order", "choice", "symbol", "yes_no"]

Question = tuple[str, str]
"""What is asked and the answer."""

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
"""Ordinal numbers."""


def symbol(rng: Random) -> str:
    """A short string to be written as a decision: a sign, a letter, a word, a number."""
    mode = rng.random()
    if mode < 0.45:
        return rng.choice("+-*/=<>#@&%$!?()[]{}|^~_")
    if mode < 0.6:
        return rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if mode < 0.7:
        return str(rng.randint(0, 99))
    word = rng.choice(
        (*NOUNS, "left", "right", "up", "down", "yes", "no", "raise", "lower", "hit", "stand", "more", "less")
    )
    return word if mode < 0.9 else f"{rng.choice('[(<{#')}{word}{rng.choice('])>}#')}"


def choice(rng: Random, claims: list[tuple[str, bool]]) -> Question:
    """Turn exclusive claims, one of them true, into a choice between given symbols.

    Args:
        rng: Source of randomness.
        claims: Clauses such as "A is more than B" and whether they hold; exactly one does.

    Returns:
        Question and the symbol of the true claim.
    """
    claims = rng.sample(claims, len(claims))
    signs: list[str] = []
    while len(signs) < len(claims):
        sign = symbol(rng)
        if sign not in signs:
            signs.append(sign)
    answer = next(sign for sign, (_, true) in zip(signs, claims, strict=True) if true)
    verb = rng.choice(["write", "write", "say", "answer", "reply", "give"])
    quote = rng.choice(["", "", '"'])
    signs = [f"{quote}{sign}{quote}" for sign in signs]
    parts = [f"{verb} {sign} if {claim}" for sign, (claim, _) in zip(signs, claims, strict=True)]
    style = rng.random()
    if style < 0.4:
        last = rng.choice([f"otherwise {verb} {signs[-1]}", f"else {signs[-1]}", f"if not, {signs[-1]}"])
        text = ", ".join(parts[:-1]) + ", " + last
    elif style < 0.75:
        text = ", ".join(parts)
    else:
        text = "; ".join(f"{sign}: {claim}" for sign, (claim, _) in zip(signs, claims, strict=True))
        text = rng.choice(["which is true? ", "choose: ", "what holds? "]) + text
    return text[0].upper() + text[1:] + ".", answer


def yes_no(true: bool) -> str:
    """Answer of a yes-or-no question."""
    return "yes" if true else "no"


def by_order(x: int, y: int, below: str = "<", above: str = ">", same: str = "=") -> str:
    """Answer of a question that compares x with y: what to write if x is below y, above it, the same."""
    return below if x < y else above if x > y else same
