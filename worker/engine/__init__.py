"""The engine of jobs: a machine is a table, a job one passage through it, a row the only truth."""
