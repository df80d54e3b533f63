"""Every error that a user can cause or cure, in one tree.

    SchoolhouseError            exit 1
    ├── RecipeError             exit 2   the recipe or the command line asks for something that does not exist
    ├── ArtifactError           exit 1   a finished folder is missing, changed or cannot be written
    ├── DataError               exit 1   records, questions or text that cannot be used
    ├── ModelError              exit 1   weights or a model config that cannot be used
    ├── TaskError               exit 1   a task or a verifier that does not exist or is badly described
    ├── TrainError              exit 1   training cannot go on (nothing to learn from, a loss that is not a number)
    ├── MachineError            exit 1   too little memory or disk
    ├── ToleranceError          exit 1   a measured loss is larger than the recipe allows
    ├── BudgetError             exit 3   the time of the recipe is spent
    └── Stopped                 exit 130 somebody asked us to stop

A message says what happened, the value, and what to do next. A broken assumption of our own is an `assert`, not one
of these. Every error survives pickling, so that it can cross a process border.
"""


class SchoolhouseError(Exception):
    """Something that the user can understand and cure; the command line prints it without a traceback."""

    exit_code = 1


class RecipeError(SchoolhouseError, ValueError):
    """A recipe or a command line names a key, stage, value or file that does not exist or does not fit."""

    exit_code = 2


class ArtifactError(SchoolhouseError, OSError):
    """A finished folder is missing, has been changed, or could not be written."""

    # OSError would turn two arguments into errno and strerror; one message is all that we ever give it.


class DataError(SchoolhouseError, ValueError):
    """Records, questions or text cannot be used."""


class ModelError(SchoolhouseError, ValueError):
    """Weights, a tokenizer or a model config cannot be used."""


class TaskError(SchoolhouseError, ValueError):
    """A task or a verifier does not exist or is badly described."""


class TrainError(SchoolhouseError, RuntimeError):
    """Training cannot go on."""


class MachineError(SchoolhouseError, RuntimeError):
    """The machine has too little memory or disk for what was asked."""


class ToleranceError(SchoolhouseError, RuntimeError):
    """What was measured lies beyond what the recipe tolerates."""


class BudgetError(SchoolhouseError, RuntimeError):
    """The time of the recipe is spent and a stage that is still needed cannot start."""

    exit_code = 3


class Stopped(SchoolhouseError):  # noqa: N818  (the word that the user reads: it is no error to be stopped)
    """Somebody asked us to stop; what was done is saved."""

    exit_code = 130
