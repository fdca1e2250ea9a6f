"""The embedded corpus: Python's language reference, split into training and validation sections.

Its topics repeat one another: `for` is part of `compound`, `customization` is part of
`specialnames`, and methods are described in nearly the same text. The end of the text, which is the
validation split of a user's text, consists mostly of tables, and a third of them also occurs
earlier. So duplicate paragraphs are removed here, and complete sections of all sizes are held out
that share almost no text with other sections.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gpt2ckpt.errors import InputError

_HEADING = re.compile(r"^(?=[^\n]+\n([*=\-^\"~])\1{3,}\n)", re.MULTILINE)  # a line, underlined
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
# Words and spaces in a sequence, as in GPT-3's search for overlaps (Brown et al., 2020, app. C).
_SEQUENCE = 13
_MOST_SHARED = 0.02  # largest share of a held-out section's sequences that other sections contain


@dataclass(frozen=True)
class _Section:
    topic: int
    text: str


def topics() -> list[str]:
    """Return the topics of the language reference, sorted by name: about 465,000 characters.

    The text differs between versions of Python.

    Raises:
        InputError: this Python does not include the topics.
    """
    try:
        from pydoc_data.topics import topics as found
    except ImportError as error:
        raise InputError(
            "this Python has no pydoc_data.topics, the text of data=embedded: "
            "install Python's full standard library, or use data=text data.train=FILES"
        ) from error
    return [found[name] for name in sorted(found)]


def split_sections(documents: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Return the training and the held-out documents; no paragraph occurs twice.

    Args:
        documents: texts with underlined headings, which may contain the same paragraphs.
        val_fraction: the share of words to hold out, as closely as complete sections allow.
    """
    sections = [
        _Section(number, text)
        for number, document in enumerate(_without_repetitions(documents))
        for text in _HEADING.split(document)[::2]
        if text
    ]
    held_out = _held_out(sections, val_fraction)
    sides: tuple[list[str], list[str]] = ([], [])
    numbered = enumerate(sections)
    for (_, is_held), part in groupby(numbered, lambda item: (item[1].topic, item[0] in held_out)):
        sides[is_held].append("".join(section.text for _, section in part))
    return sides


def _without_repetitions(documents: Sequence[str]) -> list[str]:
    """Return the documents; each paragraph stays only in the largest document that contains it.

    A document that loses more than half of its text is removed completely.
    """
    seen: set[str] = set()
    kept = dict.fromkeys(range(len(documents)), "")
    for number in sorted(kept, key=lambda number: (-len(documents[number]), number)):
        parts = [part for part in _PARAGRAPHS.split(documents[number]) if part.strip()]
        own = []
        for part in parts:
            if (text := " ".join(part.split())) not in seen:
                seen.add(text)
                own.append(part)
        if 2 * sum(map(len, own)) >= sum(map(len, parts)):
            kept[number] = "\n\n".join(own) + "\n"
    return [text for text in kept.values() if text.strip()]


def _held_out(sections: Sequence[_Section], val_fraction: float) -> set[int]:
    """Return the indices of the sections to hold out: of all sizes, with little shared text."""
    shared = _shares(sections)
    held: set[int] = set()
    so_far = held_so_far = 0
    sizes = [len(section.text.split()) for section in sections]  # tables are mostly spaces
    for number in sorted(range(len(sections)), key=lambda number: (-sizes[number], number)):
        size = sizes[number]
        so_far += size
        wanted = val_fraction * so_far
        is_nearer = abs(held_so_far + size - wanted) < abs(held_so_far - wanted)
        if is_nearer and shared[number] <= _MOST_SHARED:
            held.add(number)
            held_so_far += size
    return held


def _shares(sections: Sequence[_Section]) -> list[float]:
    """Return for each section the share of its sequences that also occur in another section."""
    sequences = [_sequences(section.text) for section in sections]
    owners = Counter(sequence for own in sequences for sequence in own)
    return [sum(owners[s] > 1 for s in own) / len(own) if own else 1.0 for own in sequences]


def _sequences(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\S+|\s", text)  # with spaces, because tables share their layout
    return {tuple(words[i : i + _SEQUENCE]) for i in range(len(words) - _SEQUENCE + 1)}
