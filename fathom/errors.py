"""The errors that cross a folder boundary.

    FathomError
    ├── InputError      the user's input is wrong; one line, exit code 2
    └── WorkError       the input was fine and the work failed; one line, exit code 1
        └── BudgetStop  the budget would be exceeded; finished artifacts stay usable

Every message is one line that names the file, key or row and what was expected.
Anything else that escapes is a bug and shows its traceback.
"""


class FathomError(Exception):
    """Base of all errors that are shown to the user as one line."""


class InputError(FathomError):
    """Wrong input: names the file, key or row and what was expected (exit code 2)."""


class WorkError(FathomError):
    """Work on correct input failed (exit code 1)."""


class BudgetStop(WorkError):
    """The next piece of work does not fit the budget (exit code 1)."""


def first_line(error: Exception) -> str:
    """What another library's error says, as the part of a message: its first line, or its kind where it says nothing.

    A first line that ends in a colon comes with the next one, which says what it announces.
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
