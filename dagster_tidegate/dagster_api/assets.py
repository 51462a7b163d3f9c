"""Assets: whether they or their inputs were materialized since a time."""

from datetime import datetime

import dagster as dg

from dagster_tidegate.dagster_api.backfills import is_in_backfill
from dagster_tidegate.dagster_api.lineage import partition_key_of
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

    def was_replaced(self, run: dg.DagsterRun, since: datetime) -> bool:
        """Return whether other runs have materialized all assets of a run since a time.

        A run of a backfill is never replaced: the backfill waits for a run of its own.
        """
        if not run.asset_selection or is_in_backfill(run):
            return False
        partition = partition_key_of(run)
        filters = (
            dg.AssetRecordsFilter(
                key,
                asset_partitions=None if partition is None else [partition],
                after_timestamp=since.timestamp(),
            )
            for key in run.asset_selection
        )
        return all(self.instance.fetch_materializations(each, limit=1).records for each in filters)
