"""SaveConfigCallback: the configuration of a run, in a file beside its logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class SaveConfigCallback(Callback):
    """Writes the configuration of `LightningCLI` into the directory of the logs, before anything else happens.

    Only rank 0 writes. Nothing is written under ``fast_dev_run``. A file with the same content is left as it is. Where
    a run goes on in its directory (``ckpt_path="auto"``) with another configuration, the earlier file is kept as
    ``config.1.yaml``, and so on.

    Args:
        parser: Parser that made `config`.
        config: The parsed configuration.
        config_filename: Name of the file.
        overwrite: Whether a file that is there already may be replaced.
        multifile: Write configuration that was read from several files to several files.
        save_to_log_dir: Whether to write into ``trainer.log_dir``. False leaves it to `save_config`.

    Raises:
        RuntimeError: When a run begins: there is another configuration in its directory.
    """

    def __init__(
        self,
        parser: Any,
        config: Any,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False
        if not save_to_log_dir and type(self).save_config is SaveConfigCallback.save_config:
            raise ValueError(
                "save_to_log_dir=False leaves saving to save_config, which is not overridden. Override "
                "save_config(trainer, pl_module, stage), or leave save_to_log_dir=True."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file. All ranks must reach this."""
        if self.already_saved:
            return
        if self.save_to_log_dir:
            self._save_to_log_dir(trainer)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Override to keep the configuration elsewhere, for example with a logger. Called on rank 0 only.

        Args:
            trainer: The Trainer; its ``log_dir`` is known.
            pl_module: The module.
            stage: "fit", "validate", "test" or "predict".
        """

    def _save_to_log_dir(self, trainer: Trainer) -> None:
        folder = trainer.log_dir  # all ranks must reach this
        assert folder is not None
        path = os.path.join(folder, self.config_filename)
        text = self._text()
        is_refused = False
        if trainer.is_global_zero:
            is_there, is_same = _compare(path, text)
            is_other = is_there and not is_same and not self.overwrite
            is_refused = is_other and _asked_path(self.config) != "auto"
            if is_other and not is_refused:
                _keep_earlier(path)
            if not is_refused and not is_same:
                self._write(path, text)
        # all ranks must reach this
        if trainer.strategy.broadcast(is_refused):
            raise RuntimeError(
                f"{path} holds the configuration of another run, and is not overwritten. Log to another directory, "
                "delete the file, or pass LightningCLI(save_config_kwargs={'overwrite': True})."
            )

    def _text(self) -> str:
        import fulgur

        text: str = self.parser.dump(self.config, skip_unset=False, skip_validation=True)
        return f"# fulgur=={fulgur.__version__}\n{text}"

    def _write(self, path: str, text: str) -> None:
        import fsspec

        if self.multifile:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.parser.save(self.config, path, skip_unset=False, skip_validation=True, overwrite=True, multifile=True)
            return
        fs, inner = fsspec.core.url_to_fs(path)
        fs.makedirs(os.path.dirname(inner), exist_ok=True)
        with fs.open(inner, "w", encoding="utf-8") as file:
            file.write(text)


def _compare(path: str, text: str) -> tuple[bool, bool]:
    """Whether there is a file, and whether `text` is in it."""
    import fsspec

    fs, inner = fsspec.core.url_to_fs(path)
    if not fs.exists(inner):
        return False, False
    with fs.open(inner, "r", encoding="utf-8") as file:
        return True, file.read() == text


def _keep_earlier(path: str) -> None:
    import fsspec

    fs, inner = fsspec.core.url_to_fs(path)
    stem, extension = os.path.splitext(inner)
    number = 1
    while fs.exists(f"{stem}.{number}{extension}"):
        number += 1
    fs.mv(inner, f"{stem}.{number}{extension}")


def _asked_path(config: Any) -> Any:
    return config.get("ckpt_path") if hasattr(config, "get") else None
