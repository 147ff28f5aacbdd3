"""LightningDataModule: everything about the data, apart from the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulgur.data.combine import flatten_loaders
from fulgur.data.transfer import move_to_device
from fulgur.errors import MisconfigurationException
from fulgur.hooks import overrides
from fulgur.hparams import HyperparametersMixin, build_init_kwargs, class_only, read_hparams_file

if TYPE_CHECKING:
    from typing_extensions import Self

    from fulgur.trainer import Trainer

_STAGES = {
    "train_dataloader": "Train",
    "val_dataloader": "Validation",
    "test_dataloader": "Test",
    "predict_dataloader": "Predict",
}


class LightningDataModule(HyperparametersMixin):
    """Downloads, splits, loads and transfers data, so that any model can be trained on it.

    Pass it to the Trainer as ``trainer.fit(model, datamodule=datamodule)``. It works without a Trainer too: call
    `prepare_data` and `setup` yourself.

    Attributes:
        trainer: The Trainer that runs it; None before the first run.
        name: A name of your own; not used by fulgur.
        prepare_data_per_node: Call `prepare_data` on the first process of each node; False: on that of the first
            node only, for a filesystem that all nodes share.
        allow_zero_length_dataloader_with_multiple_devices: Accept a rank without a batch where others have some.

    Example:
        >>> class Squares(LightningDataModule):
        ...     def train_dataloader(self):
        ...         return DataLoader(TensorDataset(torch.arange(10.0), torch.arange(10.0) ** 2), batch_size=5)
    """

    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    # Class attributes, so that a subclass that does not call super().__init__() works.
    trainer: Trainer | None = None
    name: str | None = None
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take and ignore anything, for classes that pass their arguments on."""
        super().__init__()

    def prepare_data(self) -> None:
        """Download or preprocess to disk. First of all hooks, on one process of a node: keep no state here."""

    def setup(self, stage: str) -> None:
        """Load and split, on every process, before the other `setup` hooks and before any loader is asked for.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def teardown(self, stage: str) -> None:
        """Clean up, on every process, at the end of a run; also after an exception."""

    def train_dataloader(self) -> Any:
        """Loader of training batches, or a collection of loaders, which are then iterated over in step."""
        raise _not_implemented(self, "train_dataloader")

    def val_dataloader(self) -> Any:
        """Loader of validation batches, or a collection of loaders, which then run one after the other."""
        raise _not_implemented(self, "val_dataloader")

    def test_dataloader(self) -> Any:
        """Loader of test batches, or a collection of loaders, which then run one after the other."""
        raise _not_implemented(self, "test_dataloader")

    def predict_dataloader(self) -> Any:
        """Loader of batches to predict, or a collection of loaders, which then run one after the other."""
        raise _not_implemented(self, "predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it moves to the device. Returns the batch."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device. Returns the batch. Override it for data that has no ``.to``."""
        return move_to_device(batch, device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, for example augment it there. Returns the batch."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """State to store in checkpoints: plain data and tensors. An empty dict is not stored."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def on_exception(self, exception: BaseException) -> None:
        """When an exception, KeyboardInterrupt included, ends the run."""

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Make a datamodule from datasets.

        Training data is shuffled, unless it is an IterableDataset. Host memory is pinned where CUDA is available.

        Args:
            train_dataset: A dataset, or a list, tuple or dict of datasets, which gives the same of loaders.
            val_dataset: Likewise, for validation.
            test_dataset: Likewise, for testing.
            predict_dataset: Likewise, for prediction.
            batch_size: Samples in a batch. Also passed to the constructor of a subclass that takes it.
            num_workers: Worker processes of each loader; 0 loads in the main process. Also passed on.
            **datamodule_kwargs: Further arguments of the constructor.
        """
        own = {"batch_size": batch_size, "num_workers": num_workers, **datamodule_kwargs}
        datamodule = cls(**datamodule_kwargs, **_accepted(cls, own, besides=datamodule_kwargs))
        datasets = {
            "train_dataloader": train_dataset,
            "val_dataloader": val_dataset,
            "test_dataloader": test_dataset,
            "predict_dataloader": predict_dataset,
        }
        for hook, dataset in datasets.items():
            if dataset is not None:
                is_train = hook == "train_dataloader"
                # A partial, not a closure: it survives pickling, which spawned processes need.
                setattr(datamodule, hook, partial(_build_loaders, dataset, is_train, batch_size, num_workers))
        return datamodule

    @class_only
    def load_from_checkpoint(
        cls,  # noqa: N805 - class_only is a classmethod
        checkpoint_path: str | os.PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a datamodule again from the hyperparameters and the state in a checkpoint.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: Where to put the tensors of the file, as in `torch.load`. None: the CPU, since no weights
                are used.
            hparams_file: A .yaml, .yml or .csv file whose values replace the saved hyperparameters.
            weights_only: None or True: nothing in the file is executed. False trusts the file.
            **kwargs: Arguments of the constructor that win over saved ones.

        Raises:
            TypeError: It is called on an instance, or the constructor needs an argument that nobody gave.
        """
        from fulgur.checkpoint.load import load_checkpoint
        from fulgur.checkpoint.made_by_cli import make_object, read_marks
        from fulgur.checkpoint.plain import from_plain

        checkpoint = load_checkpoint(checkpoint_path, map_location=map_location or "cpu", weights_only=weights_only)
        if hparams_file is not None:
            hparams: Any = read_hparams_file(hparams_file)
        else:
            hparams = from_plain(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        hparams_name = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
        made, hparams, marks = read_marks(cls, hparams)
        arguments = build_init_kwargs(made, hparams, hparams_name=hparams_name, overrides=kwargs)
        datamodule: Self = make_object(made, arguments, own=kwargs, marks=marks)
        name = type(datamodule).__qualname__
        if name in checkpoint:
            datamodule.load_state_dict(from_plain(checkpoint[name]))
        return datamodule

    def __str__(self) -> str:
        """One line for each kind of loader with the sizes of its datasets. Calls the ``*_dataloader`` methods."""
        return "\n".join(f"{{{label} dataloader: {_described_sizes(self, hook)}}}" for hook, label in _STAGES.items())


def _not_implemented(datamodule: LightningDataModule, hook: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"{type(datamodule).__name__} has no `{hook}`, which must be implemented for this. Define it, or pass a "
        "loader to the Trainer."
    )


def _accepted(cls: type, candidates: dict[str, Any], *, besides: Mapping[str, Any]) -> dict[str, Any]:
    """The candidates that the constructor of `cls` takes and that are not in `besides` already."""
    accepted = build_init_kwargs(cls, candidates, hparams_name=None, overrides={})
    return {name: value for name, value in accepted.items() if name not in besides}


def _build_loaders(datasets: Any, is_train: bool, batch_size: int, num_workers: int) -> Any:
    build: Callable[[Any], Any] = partial(
        _build_loaders, is_train=is_train, batch_size=batch_size, num_workers=num_workers
    )
    if isinstance(datasets, Mapping):
        return {name: build(dataset) for name, dataset in datasets.items()}
    if isinstance(datasets, (list, tuple)) and not _is_dataset(datasets):
        return type(datasets)(map(build, datasets))
    return DataLoader(
        datasets,
        batch_size=batch_size,
        shuffle=is_train and not isinstance(datasets, IterableDataset),
        num_workers=num_workers,
        # torch warns of pinned memory that nobody can use.
        pin_memory=torch.cuda.is_available(),
    )


def _is_dataset(sequence: Any) -> bool:
    """Whether a list or tuple holds samples rather than datasets."""
    return bool(sequence) and not all(isinstance(item, (Dataset, list, tuple, Mapping)) for item in sequence)


def _described_sizes(datamodule: LightningDataModule, hook: str) -> str:
    if not overrides(datamodule, hook, LightningDataModule):
        return "None"
    try:
        loaders = flatten_loaders(getattr(datamodule, hook)())
    except Exception:
        # Before `setup` there may be no data yet; printing an object must not raise.
        return "None"
    sizes = [f"size={_dataset_size(loader)}" for loader in loaders]
    if len(sizes) == 1:
        return sizes[0]
    return " ; ".join(f"{number}. {size}" for number, size in enumerate(sizes, start=1)) or "None"


def _dataset_size(loader: Any) -> str:
    try:
        return str(len(getattr(loader, "dataset", loader)))
    except (TypeError, NotImplementedError):
        return "NA"
