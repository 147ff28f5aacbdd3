"""Loggers to services that fulgur cannot reach."""

from __future__ import annotations

from typing import Any

_OTHERS = "Use WandbLogger, MLFlowLogger, CometLogger, TensorBoardLogger or CSVLogger."


class NeptuneLogger:
    """Cannot be made: the service has ended.

    Raises:
        RuntimeError: Always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"NeptuneLogger: the service neptune.ai has ended, and nothing can be logged to it. {_OTHERS}"
        )


class LitLogger:
    """Cannot be made: the service is for another package alone.

    Raises:
        RuntimeError: Always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"LitLogger logs to the cloud of Lightning AI through its package, which fulgur does not have. {_OTHERS}"
        )
