"""Whether a function of one's own takes what a stage will call it with, told before anything is read."""

import functools
import inspect
from collections.abc import Callable, Sequence


def refuse_other_arguments(
    function: Callable, what: str, by_place: Sequence[str] = (), by_name: Sequence[str] = ()
) -> None:
    """Refuses a function that cannot be called with these arguments; one that does not say is let pass.

    Args:
        function: also a partial one, whose own arguments come in addition.
        what: to call it in the message.
        by_place: names of what is handed over in its order.
        by_name: names of what is handed over under its name.

    Raises:
        ValueError: With what is handed over, and what of it does not fit.

    >>> refuse_other_arguments(lambda ranking: 0.0, "mine", ["ranking"])
    """
    given, named = tuple(by_place), dict.fromkeys(by_name)
    while isinstance(function, functools.partial):
        given, named = (*function.args, *given), {**function.keywords, **named}
        function = function.func
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is not written in Python
        return
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        handed = ", ".join([*by_place, *(f"{each}=" for each in named)])
        raise ValueError(f"{what} is {name}, which cannot be called with ({handed}): {error}") from None
