"""The resource of the gate's sensors, built once per process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from dagster_tidegate.plugin.resource import BreakerResource


@dataclass(frozen=True)
class _Kept:
    """The resource of a definition, for the ticks of an instance."""

    definition: dg.ResourceDefinition
    instance: object
    resource: BreakerResource


class KeptResource:
    """Builds the resource at the first tick of a sensor, and keeps it.

    Dagster would build it at each tick, which takes longer than most ticks. A subclass may do more
    when it is built, and is not kept.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._kept: _Kept | None = None

    @contextmanager
    def of(self, context: dg.SensorEvaluationContext) -> Iterator[BreakerResource]:
        """Return the resource for a tick, and tear it down after it as Dagster does."""
        definition = (context.resource_defs or {}).get(self._key)
        kept, instance = self._kept, context.instance_ref
        if kept is not None and kept.definition is definition and kept.instance == instance:
            try:
                yield kept.resource
            finally:
                kept.resource.fleet.flush()
            return
        resource: BreakerResource = getattr(context.resources, self._key)
        if definition is not None and type(resource) is BreakerResource:
            self._kept = _Kept(definition, instance, resource)
        yield resource
