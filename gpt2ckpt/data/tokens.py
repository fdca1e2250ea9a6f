"""A stream of tokens: pieces in files or in memory, read as one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt2ckpt.data.plugin_tokens import PluginTokens
from gpt2ckpt.data.token_files import TokenFile, Tokens, check_vocabulary


@dataclass(frozen=True)
class Piece:
    """A part of a stream: the tokens of one file or document, and a name for messages."""

    name: str
    tokens: Tokens | TokenFile | PluginTokens


class TokenStream:
    """Pieces read as one sequence of tokens.

    Every read checks that its tokens are in the vocabulary, since they index the embedding. A check
    of the complete corpus at the start would take too long.
    """

    def __init__(self, pieces: Sequence[Piece], vocab_size: int) -> None:
        self.pieces = tuple(piece for piece in pieces if len(piece.tokens))
        self.vocab_size = vocab_size
        lengths = [len(piece.tokens) for piece in self.pieces]
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.pieces else 0

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return tokens start .. start+count-1, int64, shape [count].

        Raises:
            IndexError: the range exceeds the stream.
            InputError: a token is outside the vocabulary. The message names the file.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start}..{start + count} of a stream of {len(self)}")
        out = np.empty(count, dtype=np.int64)
        done = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while done < count:
            piece = self.pieces[index]
            offset = start + done - (int(self._ends[index]) - len(piece.tokens))
            part = piece.tokens[offset : offset + count - done]
            check_vocabulary(piece.name, part, offset, self.vocab_size)
            out[done : done + len(part)] = part
            done += len(part)
            index += 1
        return out

    def split(self, at: int) -> tuple["TokenStream", "TokenStream"]:
        """Return the first `at` tokens and the rest as two streams that share memory."""
        first: list[Piece] = []
        rest: list[Piece] = []
        begin = 0
        for piece in self.pieces:
            cut = min(max(at - begin, 0), len(piece.tokens))
            first.append(Piece(piece.name, piece.tokens[:cut]))
            rest.append(Piece(piece.name, piece.tokens[cut:]))
            begin += len(piece.tokens)
        return TokenStream(first, self.vocab_size), TokenStream(rest, self.vocab_size)


def count_blocks(tokens: int, block_size: int) -> int:
    """Return the number of blocks of `block_size` inputs with targets in `tokens` tokens."""
    return max(tokens - 1, 0) // block_size
