"""What is done, in which order: machines, their steps, and the catalogue of jobs."""
