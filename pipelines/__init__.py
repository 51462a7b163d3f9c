"""This deployment's campaigns: jobs, partitions and schedules."""
