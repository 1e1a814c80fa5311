"""What is remembered: the engine's tables, the ledger, and the platform's rows that we read and write."""
