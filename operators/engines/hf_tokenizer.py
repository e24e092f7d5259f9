"""A ``tokenizer.json`` in this process, where control tokens are read only when asked.

vLLM's own ``/tokenize`` reads every control token it finds in a text, so users could end their turn and speak as the
system; and a call of it would hold up the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from operators.errors import Reject, Stop

BEFORE = 8
"""Tokens of the prompt that decide how the first one of the answer reads."""


class HfTokenizer:
    """Text to token ids as the model was trained.

    Raises ``Stop`` if the file is no tokenizer, or one that reads control tokens in any text.
    """

    def __init__(self, path: Path, who: str) -> None:
        import tokenizers

        try:
            self._special, self._plain = (tokenizers.Tokenizer.from_file(str(path.expanduser())) for _ in range(2))
        except Exception as e:  # the library raises bare Exception
            raise Stop(who, f"{path}: {e}", "give the tokenizer.json of the model") from e
        for one in (self._special, self._plain):
            one.no_truncation()
            one.no_padding()
        self._plain.encode_special_tokens = True  # as ordinary text
        added = self._special.get_added_tokens_decoder().items()
        self._control = {token.content: number for number, token in added if token.special}
        leaks = [text for text, number in self._control.items() if number in self.tokenize(text)]
        if leaks:
            got = f"{path.name} reads {leaks[:3]} as control tokens in any text"
            raise Stop(who, got, "use a tokenizer.json that keeps them out of its ordinary vocabulary")

    @property
    def control(self) -> frozenset[str]:
        """The control tokens, as they are written."""
        return frozenset(self._control)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; lone surrogates, which UTF-8 can't carry, become ``?``."""
        reader = self._special if special else self._plain
        return list(reader.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids)

    def first(self, choices: Sequence[str]) -> list[int]:
        """First token of each choice; an empty choice has none and raises ``Reject``."""
        tokens = [self.tokenize(choice) for choice in choices]
        if not all(tokens):
            raise Reject("score", f"an empty choice in {list(choices)!r}", "give choices of at least one token")
        return [ids[0] for ids in tokens]

    def piece(self, token: int) -> str:
        """One token as text; half a character is U+FFFD."""
        return str(self._special.decode([token], skip_special_tokens=False))

    def reader(self, prompt: Sequence[int] = ()) -> Callable[[int], str]:
        """Reads an answer to ``prompt`` token by token: the text that is certain by then, never half a character.
        Control tokens have none."""
        from tokenizers.decoders import DecodeStream

        # Some tokenizers drop a blank at the beginning of a text, so it has to know that it isn't at one.
        stream = DecodeStream(list(prompt[-BEFORE:]), skip_special_tokens=True)
        return lambda token: stream.step(self._special, token) or ""
