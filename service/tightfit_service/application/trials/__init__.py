"""The trials of a job: run, judged, chosen from, vouched for."""
