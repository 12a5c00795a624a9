"""The exception tree: what a caller can fix, and what is worth trying again."""


class PipelineError(Exception):
    """Base of every error this package raises on purpose; its text is one line for a person."""


class PermanentError(PipelineError):
    """Trying again changes nothing: the input, the settings or the stored state must change first."""


class TransientError(PipelineError):
    """The same call may succeed later: a server is starting, restarting or unreachable."""


class InputError(PermanentError):
    """Bars, a file or a table that cannot be read as bars."""


class ConfigurationError(PermanentError):
    """A setting, an option or a feature configuration that makes no sense."""


class SchemaMismatchError(PermanentError):
    """The database holds a table of another shape under a name this package owns."""


class StateFolderError(PermanentError):
    """The state folder cannot be used: permissions, a full disk, a file in the way."""


class DamagedFileError(PermanentError):
    """A file of the lake or the model store does not hold what was written into it."""


class DatabaseRefusedError(PermanentError):
    """The database answered and said no: wrong password, missing right, read-only server."""


class DatabaseUnavailableError(TransientError):
    """The database did not answer."""


class BundleRejectedError(PermanentError):
    """A model bundle is damaged, foreign, or does not match its own metadata."""


class NoEarlierChampionError(PermanentError):
    """A rollback has no champion before the present one to return to."""


class PredictionRefusedError(PermanentError):
    """No prediction is given, because the input does not support one."""


class NotEnoughBarsError(PredictionRefusedError):
    """Fewer bars than the features reach back."""


class UnknownSymbolError(PredictionRefusedError):
    """The model was not trained on this symbol, or no bars are stored for it."""


class FeaturesNotStoredError(PredictionRefusedError):
    """The online store has nothing of this symbol."""


class FeaturesExpiredError(PredictionRefusedError):
    """The online row is older than the features' time to live."""


class FeaturesFromTheFutureError(PredictionRefusedError):
    """The online row is of a bar that closes after the time it is asked for."""


class FeaturesIncompleteError(PredictionRefusedError):
    """The online row lacks values: too short a history, or a feature set that was not materialized yet."""
