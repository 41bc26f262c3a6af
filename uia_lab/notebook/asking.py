"""One body for two faces: what ``AsyncLab`` awaits, ``Lab`` asks for and waits."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from uia_lab.domain.errors import DeadlineExceeded

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Method: TypeAlias = Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]

# Local mode starts a service behind its first question; a server answers in milliseconds.
QUESTION_S = 60.0


class Ask(Protocol):
    """Runs a coroutine function, and gives its result or something that leads to it."""

    def __call__(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> Any:
        """Runs ``function(*args, **kwargs)``."""


def directly(function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> Any:
    """The :class:`Ask` of ``AsyncLab``: whoever called awaits it."""
    return function(*args, **kwargs)


class Asked(Generic[T]):
    """A question that is asked when it is awaited, and anew each time.

    A bare coroutine in its place would warn whenever a completer merely looks at the attribute.
    """

    def __init__(self, function: Callable[[], Awaitable[T]], name: str) -> None:
        self._function = function
        self._name = name

    def __await__(self) -> Generator[Any, Any, T]:
        return self._function().__await__()

    def __repr__(self) -> str:
        return f"<{self._name}: write `await lab.{self._name}`>"


class asked(Generic[T]):  # noqa: N801 - used as a decorator, like property
    """A property of ``AsyncLab`` to await: ``await lab.models``.

    Args:
        function: The method that finds it out.
    """

    def __init__(self, function: Callable[[Any], Coroutine[Any, Any, T]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "asked[T]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> Asked[T]: ...
    def __get__(self, instance: object | None, owner: type) -> "asked[T] | Asked[T]":
        if instance is None:
            return self
        return Asked(functools.partial(self.function, instance), self.function.__name__)


def within(seconds: float) -> Callable[[Method[P, T]], Method[P, T]]:
    """Ends a method of ``AsyncLab`` after so long, with :class:`DeadlineExceeded`."""

    def decorate(method: Method[P, T]) -> Method[P, T]:
        @functools.wraps(method)
        async def bounded(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            deadline = asyncio.timeout(seconds)
            try:
                async with deadline:
                    return await method(self, *args, **kwargs)
            except TimeoutError:
                if not deadline.expired():
                    raise
                where = getattr(self, "where", "there")
                raise DeadlineExceeded(f"no answer from {where} within {seconds:g} s") from None

        return bounded

    return decorate


def mirrors(
    source: Callable[Concatenate[Any, P], Any],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Gives a method of ``Lab`` the arguments, name and words of its counterpart in ``AsyncLab``."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        assigned = ("__module__", "__name__", "__doc__")
        wrapped: Callable[Concatenate[Any, P], R] = functools.update_wrapper(method, source, assigned, ())
        method.__qualname__ = source.__qualname__.removeprefix("Async")
        return wrapped

    return decorate


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The method of ``Lab`` that waits for one of ``AsyncLab``."""

    @mirrors(method)
    def ask(self: Any, *args: Any, **kwargs: Any) -> T:
        answer: T = self._ask(method, self._async, *args, **kwargs)
        return answer

    return ask


class answered(Generic[T]):  # noqa: N801 - used like property
    """The property of ``Lab`` that waits for one of ``AsyncLab``."""

    def __init__(self, question: asked[T]) -> None:
        self._function = question.function
        self.__doc__ = question.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "answered[T]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return instance._ask(self._function, instance._async)  # noqa: SLF001 - a part of Lab


def action(method: Method[P, T]) -> Callable[Concatenate[Any, P], T]:
    """A method of a table such as ``lab.backends``: waited for in ``Lab``, to await in ``AsyncLab``.

    The table keeps the :class:`Ask` of its Lab as ``_ask``.
    """

    @mirrors(method)
    def act(self: Any, *args: Any, **kwargs: Any) -> T:
        done: T = self._ask(method, self, *args, **kwargs)
        return done

    return act
