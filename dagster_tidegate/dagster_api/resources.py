"""Resources: Dagster makes three new ones of each for every step and every tick of a sensor."""

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import dagster as dg


class LightResource(dg.ConfigurableResource):
    """A resource that is copied where Dagster would make it anew with the same values.

    Making one infers the schema of its class, which takes longer than all else that Tidegate adds
    to a run. If Dagster should not ask here any more, a resource only takes as long as any other.
    """

    def _with_updated_values(self, values: Mapping[str, Any] | None) -> Self:
        # Dagster's own dictionary of these values takes over a millisecond for each service. An
        # environment variable is here by its name, and so differs from its value.
        if not values or _given(values) == self.model_dump(exclude_none=True, warnings=False):
            return copy(self)
        # Dagster annotates it with the base class, and makes one of this class.
        return super()._with_updated_values(values)  # type: ignore[return-value]


def _given(value: Any) -> Any:
    """Return a value of a config without what is None."""
    if isinstance(value, Mapping):
        return {key: _given(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_given(each) for each in value]
    return value
