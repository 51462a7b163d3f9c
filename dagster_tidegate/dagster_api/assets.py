"""Assets: whether their inputs have changed."""

from datetime import datetime

import dagster as dg

from dagster_tidegate.dagster_api.runs import Runs


class Assets(Runs):
    """The assets of a Dagster instance."""

    def inputs_changed(self, run: dg.DagsterRun, since: datetime) -> bool:
        """Return whether an asset that those of a run depend on was materialized since a time."""
        if self.repository is None or not run.asset_selection:
            return False
        graph = self.repository.definition.asset_graph
        inputs = {
            parent
            for key in run.asset_selection
            if graph.has(key)
            for parent in graph.get(key).parent_keys
        } - run.asset_selection
        events = (self.instance.get_latest_materialization_event(key) for key in inputs)
        return any(event is not None and event.timestamp > since.timestamp() for event in events)
