"""What processes of a user's project have in their PYTHONPATH, to start in less time."""

from pathlib import Path

SUPPORT = Path(__file__).parent
QUICK_RUNS = [str(SUPPORT / "quick_runs"), str(SUPPORT / "quick_children")]
"""Their run processes are forks, and children of their code server as ever."""
