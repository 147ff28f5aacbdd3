"""DeepSpeed: what stands in the place of a strategy that fulgur does not have."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from fulgur.errors import MisconfigurationException
from fulgur.strategies.parallel import ParallelStrategy


class DeepSpeedStrategy(ParallelStrategy):
    """Cannot be made: fulgur does not drive DeepSpeed's engine, and the message says what does the same.

    Args:
        stage: Of ZeRO; decides what the message advises.
        *args, **kwargs: Whatever else is passed.

    Raises:
        MisconfigurationException: Always.
    """

    def __init__(self, *args: Any, stage: int = 2, offload_parameters: bool = False, **kwargs: Any) -> None:
        instead = f"FSDPStrategy(sharding_strategy={'SHARD_GRAD_OP' if stage < 3 else 'FULL_SHARD'!r}"
        instead += ", cpu_offload=True)" if offload_parameters else ")"
        lack = "" if find_spec("deepspeed") else ", and the package deepspeed is not installed"
        raise MisconfigurationException(
            f"strategy='deepspeed': fulgur does not drive DeepSpeed's engine{lack}. ZeRO stage {stage} is what torch's "
            f"own sharding does: use strategy={instead}, or strategy='fsdp'."
        )

    def setup_module(self, module: Any) -> Any:
        raise NotImplementedError
