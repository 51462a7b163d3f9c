"""`each`: an op or asset from a function of one record."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import dagster as dg

from dagster_tidegate.plugin.resource import BreakerResource
from dagster_tidegate.pools import pool
from dagster_tidegate.records.record import Record

# What the function may take besides the item.
_EXTRAS = ("record", "breakers", "context")
_RESOURCE_PARAM = dg.ResourceParam[Any].__metadata__


@overload
def each(
    *services: str,
    key: str | Callable[[Any], object],
    items: str = ...,
    asset: Literal[False] = ...,
    concurrency: int = ...,
    max_failed: float | None = ...,
    max_tries: int = ...,
    campaign: str | None = ...,
    resource_key: str = ...,
    **options: Any,
) -> Callable[[Callable[..., Any]], dg.OpDefinition]: ...


@overload
def each(
    *services: str,
    key: str | Callable[[Any], object],
    items: str = ...,
    asset: Literal[True],
    concurrency: int = ...,
    max_failed: float | None = ...,
    max_tries: int = ...,
    campaign: str | None = ...,
    resource_key: str = ...,
    **options: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]: ...


def each(
    *services: str,
    key: str | Callable[[Any], object],
    items: str = "items",
    asset: bool = False,
    concurrency: int = 1,
    max_failed: float | None = None,
    max_tries: int = 10,
    campaign: str | None = None,
    resource_key: str = "breakers",
    **options: Any,
) -> Callable[[Callable[..., Any]], Any]:
    """Turn a function of one record into an op or an asset.

    The op has the pool of its services, loops over its input as `BreakerResource.records` does,
    and returns the results. If there is one service, each call of the function is a call of its
    breaker; with several, the function takes `breakers` and calls each through its own.

    The function gets the item, and by name, if it has such a parameter: `record`, with its
    idempotency key; `breakers`, and is then not guarded itself; `context`; and your resources, by
    the key and type of each, such as `api: CrmApi`. It may be a coroutine function.

    Args:
        services: Names of the services that the function calls.
        key: The field that is an item's key, or a function that returns the key.
        items: Name of the input with the items; of an asset, the name of the upstream asset.
        asset: Whether to make an asset instead of an op.
        concurrency: Maximum number of records in flight.
        max_failed: As for `BreakerResource.records`.
        max_tries: As for `BreakerResource.records`.
        campaign: Name of the op's job; see `pool`.
        resource_key: Key of the `BreakerResource`, if it is not `breakers`.
        options: More for `dg.op` or `dg.asset`.

    Raises:
        TypeError: If the function can't be called with an item, or calls several services and does
            not take `breakers`.

    Example:
        >>> @each("mailer", key="email", items="leads")
        ... def send(lead: dict) -> str:
        ...     return f"sent to {lead['email']}"
        >>> send.pool
        'mailer'
        >>> @dg.job
        ... def letters():
        ...     send()
    """

    def make(function: Callable[..., Any]) -> Any:
        extras, resources = _extras(function)
        guards = "breakers" not in extras
        if guards and (len(services) != 1 or "|" in services[0]):
            count = len("|".join(services).split("|")) if services else 0
            raise TypeError(
                f"{function.__name__} calls {count} services: give it a parameter 'breakers', and "
                "call each through its breaker, breakers.breaker(NAME).call(...)"
            )

        def compute(context: Any, **inputs: Any) -> list[Any]:
            breakers: BreakerResource = inputs[resource_key]
            records = breakers.records(
                context, inputs[items], key=key, max_failed=max_failed, max_tries=max_tries
            )
            given = {"breakers": breakers, "context": context}
            given |= {name: inputs[name] for name in resources}
            breaker = breakers.breaker(services[0]) if guards else None

            def arguments(record: Record) -> dict[str, Any]:
                return {name: {**given, "record": record}[name] for name in extras}

            async def handle_async(record: Record) -> Any:
                if breaker is None:
                    return await function(record.value, **arguments(record))
                return await breaker.call_async(function, record.value, **arguments(record))

            def handle(record: Record) -> Any:
                if breaker is None:
                    return function(record.value, **arguments(record))
                return breaker.call(function, record.value, **arguments(record))

            if inspect.iscoroutinefunction(function):
                return records.map(handle_async, concurrency=concurrency)
            if concurrency > 1:
                return records.map(handle, concurrency=concurrency)
            for record in records:
                with record:
                    record.result = handle(record)
            return records.results()

        inputs = {**resources, resource_key: BreakerResource, items: Any}
        _describe(compute, function, inputs, asset=asset)
        decorate = dg.asset if asset else dg.op
        settings = {"name": function.__name__, "description": function.__doc__, **options}
        return decorate(pool=pool(*services, campaign=campaign), **settings)(compute)

    return make


def _extras(function: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """Return what a function takes after the item, and the types of those that are resources.

    Raises:
        TypeError: If it takes no item, or something that is neither of `_EXTRAS` nor a resource.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except NameError:  # an annotation is imported for type checkers alone
        parameters = inspect.signature(function).parameters
    names = list(parameters)
    types = {n: parameters[n].annotation for n in names[1:] if n not in _EXTRAS}
    if not names or not all(map(_is_resource, types.values())):
        takes = ", ".join(names) or "nothing"
        raise TypeError(
            f"{function.__name__} takes {takes}: it must take an item first, and may take "
            f"{', '.join(_EXTRAS)} and resources, such as api: CrmApi"
        )
    return names[1:], types


def _is_resource(annotation: Any) -> bool:
    """Return whether Dagster takes a parameter with this annotation for a resource."""
    if isinstance(annotation, type) and issubclass(annotation, dg.ConfigurableResource):
        return True
    return getattr(annotation, "__metadata__", None) == _RESOURCE_PARAM


def _describe(
    compute: Any, function: Callable[..., Any], inputs: Mapping[str, Any], *, asset: bool
) -> None:
    """Give an op's function the name and parameters by which Dagster knows inputs and resources."""
    context = dg.AssetExecutionContext if asset else dg.OpExecutionContext
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    types = {"context": context, **inputs}
    compute.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=type_) for name, type_ in types.items()],
        return_annotation=list,
    )
    compute.__annotations__ = {**types, "return": list}
    compute.__name__, compute.__doc__ = function.__name__, function.__doc__
    compute.__module__, compute.__qualname__ = function.__module__, function.__qualname__
