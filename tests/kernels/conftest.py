"""Triton's interpreter is chosen as triton is imported: its tests have a process of their own (test_interpreter.py)."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_triton.py", "test_ops.py"]
