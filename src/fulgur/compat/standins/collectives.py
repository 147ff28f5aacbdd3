"""Collectives as objects: of one process alone, or of a group of torch's."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class Collective(ABC):
    """What processes say to each other within one group. Subclass to add one.

    `setup` joins the world, `create_group` makes the group that the other methods speak to, `teardown` leaves it.
    """

    def __init__(self) -> None:
        self._group: Any = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """Rank of this process."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Processes in the group."""

    @property
    def group(self) -> Any:
        """The group.

        Raises:
            RuntimeError: `create_group` has not been called.
        """
        if self._group is None:
            raise RuntimeError(
                f"{type(self).__name__} has no group yet. Call {type(self).__name__}.create_group() first."
            )
        return self._group

    def create_group(self, **kwargs: Any) -> Self:
        """Make the group; the arguments are those of `new_group`.

        Raises:
            RuntimeError: There is one.
        """
        if self._group is not None:
            raise RuntimeError(f"{type(self).__name__} has a group. Call teardown() before making another.")
        self._group = self.new_group(**kwargs)
        return self

    def setup(self, **kwargs: Any) -> Self:
        """Join the world, unless this process has; the arguments are those of `init_group`."""
        if not self.is_initialized():
            self.init_group(**kwargs)
        return self

    def teardown(self) -> Self:
        """Leave the group.

        Raises:
            RuntimeError: There is none.
        """
        group, self._group = self.group, None
        self.destroy_group(group)
        return self

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether it can be used here."""

    @classmethod
    @abstractmethod
    def is_initialized(cls) -> bool:
        """Whether this process has joined a world."""

    @classmethod
    @abstractmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Join the world."""

    @classmethod
    @abstractmethod
    def new_group(cls, **kwargs: Any) -> Any:
        """Make a group within the world."""

    @classmethod
    @abstractmethod
    def destroy_group(cls, group: Any) -> None:
        """Leave `group`."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, src: int) -> Tensor: ...

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: Any = "sum") -> Tensor: ...

    @abstractmethod
    def reduce(self, tensor: Tensor, dst: int, op: Any = "sum") -> Tensor: ...

    @abstractmethod
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]: ...

    @abstractmethod
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor: ...

    @abstractmethod
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: Any = "sum") -> Tensor: ...

    @abstractmethod
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]: ...

    @abstractmethod
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None: ...

    @abstractmethod
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor: ...

    @abstractmethod
    def barrier(self, device_ids: list[int] | None = None) -> None: ...


class SingleDeviceCollective(Collective):
    """One process alone: everything comes back as it was given."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def world_size(self) -> int:
        return 1

    @classmethod
    def is_available(cls) -> bool:
        return True

    @classmethod
    def is_initialized(cls) -> bool:
        return True

    @classmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Nothing: one process is a world."""

    @classmethod
    def new_group(cls, **kwargs: Any) -> Any:
        return object()

    @classmethod
    def destroy_group(cls, group: Any) -> None:
        """Nothing is held."""

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        return tensor

    def all_reduce(self, tensor: Tensor, op: Any = "sum") -> Tensor:
        return tensor

    def reduce(self, tensor: Tensor, dst: int = 0, op: Any = "sum") -> Tensor:
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        return [tensor]

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        return scatter_list[0]

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: Any = "sum") -> Tensor:
        return input_list[0]

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        return input_tensor_list

    def send(self, tensor: Tensor, dst: int = 0, tag: int = 0) -> None:
        """There is nobody else."""

    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        return tensor

    def barrier(self, device_ids: list[int] | None = None) -> None:
        """There is nobody to wait for."""


class TorchCollective(Collective):
    """A group of `torch.distributed`. What is received is written into the tensors given, which are returned.

    The world is left with the last group, if this class has joined it.
    """

    _joined_here = False
    _n_groups = 0

    def __init__(self) -> None:
        if not torch.distributed.is_available():
            raise RuntimeError("TorchCollective needs a torch that was built with torch.distributed.")
        super().__init__()

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank(self.group)

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size(self.group)

    @classmethod
    def is_available(cls) -> bool:
        return torch.distributed.is_available()

    @classmethod
    def is_initialized(cls) -> bool:
        return cls.is_available() and torch.distributed.is_initialized()

    def setup(self, main_address: str | None = None, main_port: str | None = None, **kwargs: Any) -> Self:
        """Join the world, unless this process has; `main_address` and `main_port` are where its first process is."""
        if self.is_initialized():
            return self
        if main_address is not None:
            os.environ["MASTER_ADDR"] = main_address
        if main_port is not None:
            os.environ["MASTER_PORT"] = str(main_port)
        super().setup(**kwargs)
        TorchCollective._joined_here = True
        return self

    def teardown(self) -> Self:
        super().teardown()
        if TorchCollective._joined_here and not TorchCollective._n_groups and self.is_initialized():
            torch.distributed.destroy_process_group()
            TorchCollective._joined_here = False
        return self

    @classmethod
    def init_group(cls, **kwargs: Any) -> None:
        torch.distributed.init_process_group(**kwargs)

    @classmethod
    def new_group(cls, **kwargs: Any) -> Any:
        group = torch.distributed.new_group(**kwargs)  # all ranks must reach this
        TorchCollective._n_groups += 1
        return group

    @classmethod
    def destroy_group(cls, group: Any) -> None:
        TorchCollective._n_groups -= 1
        if cls.is_initialized():
            torch.distributed.destroy_process_group(group)

    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        torch.distributed.broadcast(tensor, src, group=self.group)
        return tensor

    def all_reduce(self, tensor: Tensor, op: Any = "sum") -> Tensor:
        torch.distributed.all_reduce(tensor, op=_to_op(op), group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, dst: int, op: Any = "sum") -> Tensor:
        torch.distributed.reduce(tensor, dst, op=_to_op(op), group=self.group)
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        torch.distributed.all_gather(tensor_list, tensor, group=self.group)
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        torch.distributed.gather(tensor, gather_list if self.rank == dst else None, dst, group=self.group)
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        torch.distributed.scatter(tensor, scatter_list if self.rank == src else None, src, group=self.group)
        return tensor

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: Any = "sum") -> Tensor:
        torch.distributed.reduce_scatter(output, input_list, op=_to_op(op), group=self.group)
        return output

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        torch.distributed.all_to_all(output_tensor_list, input_tensor_list, group=self.group)
        return output_tensor_list

    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        torch.distributed.send(tensor, dst, tag=tag, group=self.group)

    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        torch.distributed.recv(tensor, src, tag=tag, group=self.group)
        return tensor

    def all_gather_object(self, object_list: list[Any], obj: Any) -> list[Any]:
        torch.distributed.all_gather_object(object_list, obj, group=self.group)
        return object_list

    def broadcast_object_list(self, object_list: list[Any], src: int, device: Any = None) -> list[Any]:
        torch.distributed.broadcast_object_list(object_list, src, group=self.group, device=device)
        return object_list

    def gather_object(self, obj: Any, object_gather_list: list[Any], dst: int = 0) -> list[Any]:
        torch.distributed.gather_object(obj, object_gather_list if self.rank == dst else None, dst, group=self.group)
        return object_gather_list

    def barrier(self, device_ids: list[int] | None = None) -> None:
        torch.distributed.barrier(group=self.group, device_ids=device_ids)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """As `barrier`, with an error that names the ranks that do not come. gloo only."""
        torch.distributed.monitored_barrier(group=self.group, timeout=timeout, wait_all_ranks=wait_all_ranks)


def _to_op(op: Any) -> Any:
    """torch's own operation for its name: "sum", "avg", "mean", "min", "max", "product", …"""
    if not isinstance(op, str):
        return op
    name = {"MEAN": "AVG"}.get(op.upper(), op.upper())
    found = getattr(torch.distributed.ReduceOp, name, None)
    if found is None:
        raise ValueError(f"op={op!r} is unknown. Use 'sum', 'avg', 'min', 'max' or 'product'.")
    return found
