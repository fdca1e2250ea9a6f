"""Tokenizing text in pieces gives the tokens of the complete text."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2ckpt.config.schema import END_OF_TEXT
from gpt2ckpt.data.tokenization import encode_pieces, encode_text, read_pieces, tokenize_file
from gpt2ckpt.data.tokenizer import gpt2_encoding
from gpt2ckpt.errors import InputError

# Characters that the encoding's expression might match across a cut: letters, digits,
# contractions, punctuation, every kind of whitespace, and what only Python calls whitespace.
TRICKY = st.text(alphabet="aé你7'st.=\x1c\x1f \t\n\r\x85\xa0\u2003\u2028\u3000🙂\0", max_size=80)


def _joined(arrays: list[np.ndarray]) -> list[int]:
    return np.concatenate([*arrays, np.array([], np.uint16)]).tolist()


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(TRICKY, max_size=6))
@example(pieces=["it'", "s  \n", "\n x", " ", "y"])
@example(pieces=["   ", "   "])
def test_tokens_do_not_depend_on_how_text_is_split(pieces: list[str]) -> None:
    encoding = gpt2_encoding()
    expected = encoding.encode_ordinary("".join(pieces))
    assert _joined(list(encode_pieces(pieces, encoding))) == expected


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from(" \n\t\u2003"), st.integers(1, 2500), st.sampled_from(" a7'\n.\x1c")
        ),
        max_size=4,
    )
)
def test_long_whitespace_is_split_without_changing_tokens(runs: list[tuple[str, int, str]]) -> None:
    text = "".join(space * length + after for space, length, after in runs)
    encoding = gpt2_encoding()
    assert _joined(list(encode_text(text, encoding))) == encoding.encode_ordinary(text)


def test_whitespace_that_overflows_tiktoken_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text("a" + " " * 1_500_000 + "b\n")
    tokens = np.concatenate(list(tokenize_file(path, gpt2_encoding())))
    assert gpt2_encoding().decode(tokens[:-1].tolist()) == path.read_text()
    assert tokens[-4:].tolist() == [220, 275, 198, END_OF_TEXT]


@settings(max_examples=100, deadline=None)
@given(text=TRICKY.filter(bool), piece_bytes=st.integers(1, 9), mark=st.booleans())
def test_characters_across_pieces_are_decoded(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece_bytes: int, mark: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert "".join(read_pieces(path, piece_bytes)) == text
    tokens = _joined(list(tokenize_file(path, gpt2_encoding(), piece_bytes)))
    assert tokens == [*gpt2_encoding().encode_ordinary(text), END_OF_TEXT]


def test_only_a_leading_byte_order_mark_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "marks.txt"
    path.write_bytes("\ufeff\ufeffa\r\nb\ufeff\r".encode())
    for piece_bytes in (1, 3, 100):
        assert "".join(read_pieces(path, piece_bytes)) == "\ufeffa\r\nb\ufeff\r"


def test_special_tokens_in_text_are_encoded_as_text(tmp_path: Path) -> None:
    path = tmp_path / "inject.txt"
    path.write_text("<|endoftext|>")
    tokens = _joined(list(tokenize_file(path, gpt2_encoding())))
    assert tokens == [27, 91, 437, 1659, 5239, 91, 29, END_OF_TEXT]


@pytest.mark.parametrize("piece_bytes", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abc\xff", 3),
        (b"\xff\xfea\0", 0),
        ("aé你".encode() + b"\xc3", 6),
        (b"ab\xe4\xbd!", 2),
        (b"\xed\xa0\x80", 0),
        (b"\xef\xbb\xbfabc\x80", 6),
    ],
)
def test_error_names_the_offset_of_undecodable_bytes(
    tmp_path: Path, content: bytes, offset: int, piece_bytes: int
) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"latin\.txt: not UTF-8 at byte {offset}:"):
        list(read_pieces(path, piece_bytes))


def test_error_names_an_empty_or_missing_file(tmp_path: Path) -> None:
    for content in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "empty.txt").write_bytes(content)
        with pytest.raises(InputError, match=r"empty\.txt: the file is empty"):
            list(read_pieces(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match=r"gone\.txt cannot be read \(No such file"):
        list(read_pieces(tmp_path / "gone.txt"))
