"""The text of one completion: ids in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyvllm.request import Request

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


class CompletionText:
    """Never half a character, and nothing that may yet become a stop string.

    Args:
        request: whose parameters say how tokens become text, and which strings stop it.
        tokenizer: decodes.
    """

    __slots__ = ("_add", "_detokenizer", "_stop")

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        from tinyvllm.text.detokenizer import IncrementalDetokenizer
        from tinyvllm.text.stop import StopChecker

        params = request.params
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._add = self._detokenizer.add
        self._stop: StopChecker | None = None
        if params.stop:
            self._stop = StopChecker(params.stop, include_stop_str_in_output=params.include_stop_str_in_output)

    def add(self, texts: list[str], token_id: int, *, can_stop: bool) -> str | None:
        """Take one token, and append the text that is certain now to ``texts``.

        Returns:
            the stop string that the token completed; None if it completed none, or ``can_stop`` is false.
        """
        text = self._add(token_id)
        if self._stop is None:
            texts.append(text)
            return None
        return self._append(texts, text, can_stop=can_stop)

    def end(self, texts: list[str]) -> str | None:
        """Append the text that was held back, now that no token follows.

        Returns:
            the stop string that this text completed; None if it completed none.
        """
        stopped_by = self._append(texts, self._detokenizer.flush(), can_stop=True)
        if self._stop is not None:
            texts.append(self._stop.flush())
        return stopped_by

    def _append(self, texts: list[str], text: str, *, can_stop: bool) -> str | None:
        stopped_by = None
        if self._stop is not None:
            text, stopped_by = self._stop.push(text, can_stop=can_stop)
        texts.append(text)
        return stopped_by
