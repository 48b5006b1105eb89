"""The course of one job's search, from the preflight to the verdict."""
