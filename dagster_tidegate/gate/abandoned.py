"""Abandoned runs: paused campaign runs that nothing resumes, since their job was renamed."""

from dagster_tidegate.dagster_api.lineage import MAX_TAG, REASON_TAG
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.holds import without_gate
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import campaigns, runs


def mark_abandoned(gate: Gate) -> int:
    """Correct the reasons of paused runs whose campaigns the code location no longer defines.

    They said that they resume automatically. Call it before the campaigns are saved.

    Returns:
        How many there are.
    """
    with gate.store.read() as conn:
        stored = campaigns.read(conn)
        gone = {spec.name for spec in stored if spec.location == gate.location} - {*gate.campaigns}
        paused = runs.with_status(conn, RunStatus.PAUSED, campaigns=gone) if gone else []
        attempts = {run.id: runs.latest_attempt(conn, run.id) for run in paused}
    for run in paused:
        attempt = attempts[run.id]
        dagster_run = None if attempt is None else gate.dagster.run(attempt.dagster_run)
        if dagster_run is not None:
            why = without_gate(dagster_run.tags.get(REASON_TAG, "paused"), run.campaign)
            gate.dagster.add_tags(dagster_run.run_id, {REASON_TAG: why[:MAX_TAG]})
    with gate.store.begin() as conn:
        for run in paused:
            runs.set_reason(conn, run, without_gate(run.reason or "Paused", run.campaign))
    return len(paused)
