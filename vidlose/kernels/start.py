"""What keeps Triton from starting on this machine's card, if anything: found out once, as this is imported.

It builds a small library the first time, for which it wants a C compiler and Python's headers.
"""

TROUBLE: str | None = None
try:
    from triton.runtime import driver

    driver.active.get_current_device()
except Exception as error:  # compilers and drivers fail in ways of their own
    TROUBLE = f"triton does not start: {type(error).__name__}: {error}"
