"""Five no-op steps by others, each as its own documentation shows it; run by the interpreter of `.venv-bench`.

Every module is a program: `store JOBS STAMPS` makes the tables and stores the jobs, `work HOW MANY STAMPS` works on them.
Both are told where by DATABASE_URL and REDIS_URL. In the file STAMPS each job leaves two lines, when its first step began
and when its last one ended; their spread is the same stretch for all, and costs each the same.
"""
