"""Chat templates: Jinja that came with a checkpoint or from its user, rendered in a sandbox in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tinyvllm._checks import escaped, refuse, shown
from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import RequestError
from tinyvllm.text.chat_options import DEFAULT_OPTIONS, ChatOptions
from tinyvllm.text.messages import Messages, messages_for
from tinyvllm.text.template_process import TIME_LIMIT_S, TemplateProcess
from tinyvllm.text.template_syntax import MalformedTemplateError, TemplateSyntax, analysed

# Stands behind the text that the model continues, so that everything that the template writes after it can be cut off.
# The space at its end shows whether the template trims the text.
_END_OF_TEXT = "TINYVLLM_CONTINUES_HERE "
_CACHED_TEMPLATES = 8
# Templates read some twenty variables; a search among very many would take seconds.
_MAX_HINTS = 500


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of a template.

    Attributes:
        text: Jinja.
        where: its file, for messages.
        problem: why it cannot be used, if reading it failed.
    """

    text: str
    where: str
    problem: str | None = None


class ChatTemplate:
    """One template. What is wrong with it is kept until somebody renders with it.

    Attributes:
        problem: why every rendering will be refused; None: nothing is wrong with the syntax.
    """

    def __init__(
        self, source: TemplateSource, special_tokens: Mapping[str, str], process: TemplateProcess | None = None
    ) -> None:
        """Parse a template.

        Args:
            source: the template.
            special_tokens: variables that every rendering sees (``bos_token`` and so on).
            process: where it is rendered; None: a process of its own.
        """
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._process = process or TemplateProcess()
        self._syntax: TemplateSyntax | None = None
        self.problem = source.problem
        if self.problem is None:
            try:
                self._syntax = analysed(source.text)
            except MalformedTemplateError as error:
                self.problem = f"{self._at(error.line)}: the chat template is malformed: {escaped(str(error))}"

    def render(self, messages: Messages, options: ChatOptions = DEFAULT_OPTIONS, where: str = "messages") -> str:
        """The text of a conversation.

        Args:
            messages: mappings with ``role`` and ``content``, a string or a list of text parts.
            options: everything else but the choice of this template.
            where: what the user calls the messages, for messages of errors.
        Raises:
            RequestError: the template is malformed; a message is malformed, by its place; the template refuses the
                messages, does not know the tools or a variable, or runs on and on.
        """
        if self._syntax is None:
            raise RequestError(f"{self.problem}; prompts work, and chat_template: names another Jinja file")
        variables = dict(options.chat_template_kwargs or {})
        self._check_variables(variables)
        known = {
            "documents": None,
            **self._special_tokens,
            **variables,
            "tools": self._checked_tools(options.tools),
            "add_generation_prompt": options.add_generation_prompt,
            "messages": messages_for(self._syntax, messages, where),
        }
        if not options.continue_final_message:
            return self._rendered(known)
        _mark_end(known["messages"][-1], f"{where}[{len(known['messages']) - 1}]")
        return self._until_mark(self._rendered(known))

    def _rendered(self, variables: Mapping[str, Any]) -> str:
        rendered = self._process.render(self._source.text, variables)
        if rendered.error is not None:
            raise RequestError(
                f"{self._at(rendered.line)}: the chat template does not take these messages: {escaped(rendered.error)}"
            )
        return rendered.text

    def _until_mark(self, text: str) -> str:
        at = text.rfind(_END_OF_TEXT.rstrip())
        if at < 0:
            raise RequestError(
                f"{self._source.where}: continue_final_message is set, but the chat template leaves out the end of the "
                "last message"
            )
        return text[:at] if text.startswith(_END_OF_TEXT, at) else text[:at].rstrip()

    def _checked_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        assert self._syntax is not None
        if tools and "tools" not in self._syntax.variables:
            raise RequestError(
                f"{self._source.where}: the chat template does not read tools, so the model would never see them; "
                "leave tools out, or give a chat_template that reads them"
            )
        return [dict(tool) for tool in tools] if tools else None

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        """Refuse what is misspelt; a variable of another model's template is harmless and nothing reads it."""
        assert self._syntax is not None
        known = self._syntax.variables if len(self._syntax.variables) <= _MAX_HINTS else ()
        for name in variables:
            hint = "" if name in self._syntax.variables else did_you_mean(name, known)
            if hint:
                raise RequestError(f"chat_template_kwargs.{escaped(name)} is not read by the chat template{hint}")

    def _at(self, line: int | None) -> str:
        return self._source.where if line is None else f"{self._source.where}:{line}"


class ChatTemplates:
    """The templates of a checkpoint by name, all rendered in one process, and those that conversations bring along.

    Attributes:
        problem: why conversations will be refused; None: they can be rendered, or there is no template at all.
    """

    def __init__(
        self,
        sources: Mapping[str, TemplateSource],
        special_tokens: Mapping[str, str],
        *,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Parse the templates.

        Args:
            sources: by name; ``default`` is the plain one, ``tool_use`` the one for conversations with tools.
            special_tokens: variables that every rendering sees (``bos_token`` and so on).
            time_limit_s: processor time that one rendering may take.
        """
        process = TemplateProcess(time_limit_s)
        self._by_name = {name: ChatTemplate(source, special_tokens, process) for name, source in sources.items()}
        default = self._by_name.get("default")
        self.problem = None if default is None else default.problem

        @lru_cache(maxsize=_CACHED_TEMPLATES)
        def of_text(text: str) -> ChatTemplate:
            return ChatTemplate(TemplateSource(text, "chat_template"), special_tokens, process)

        self._of_text = of_text

    def choose(self, chat_template: str | None, *, has_tools: bool) -> ChatTemplate:
        """The template for a conversation.

        Args:
            chat_template: Jinja text, or the name of one of the checkpoint's templates; None: the checkpoint's
                ``tool_use`` if there are tools and such a template, otherwise ``default``.
            has_tools: whether the conversation comes with tools.
        Raises:
            RequestError: there is no such template.
        """
        if chat_template is not None:
            return self._chosen(chat_template)
        name = "tool_use" if has_tools and "tool_use" in self._by_name else "default"
        if name in self._by_name:
            return self._by_name[name]
        if self._by_name:
            names = ", ".join(map(escaped, self._by_name))
            raise RequestError(
                f"this checkpoint has several chat templates and none is the default; give chat_template: {names}"
            )
        raise RequestError(
            "this checkpoint has no chat template; use prompts, or name a Jinja file with chat_template:"
        )

    def _chosen(self, chat_template: object) -> ChatTemplate:
        if not isinstance(chat_template, str):
            refuse("chat_template", chat_template, "the text of a Jinja template")
        if chat_template in self._by_name:
            return self._by_name[chat_template]
        if "{" not in chat_template:
            names = f", or one of the names {', '.join(map(escaped, self._by_name))}" if self._by_name else ""
            raise RequestError(
                f"chat_template must be the text of a Jinja template{names}, got {shown(chat_template)}; for a file, "
                "give its text"
            )
        return self._of_text(chat_template)


def _mark_end(message: dict[str, Any], where: str) -> None:
    """Put the mark behind the last text of a message."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _END_OF_TEXT
    elif content:
        content[-1]["text"] += _END_OF_TEXT
    else:
        refuse(f"{where}.content", content, "text, because continue_final_message is set")
