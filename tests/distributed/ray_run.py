"""Trains in two workers of a local Ray, undisturbed and with a failure; prints what came of it as a line of JSON.

python ray_run.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS="0",
    OMP_NUM_THREADS="1",
)


def work(config: dict[str, Any]) -> None:
    """What each worker does."""
    import ray.train
    import torch
    from torch.utils.data import DataLoader, Dataset

    import fulgur as fl
    from fulgur.callbacks import RayTrainReportCallback
    from fulgur.launch.environments.ray import prepare_trainer

    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 14

        def __getitem__(self, index: int) -> Any:
            return torch.tensor([float(index), float(torch.randn(()))], dtype=torch.float64)

    class Net(fl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(2, 1)).double()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if config["fails"] and is_first and self.global_rank == 1 and self.global_step == 6:
                raise ValueError("rank 1 fails once")
            seen.append([self.global_step, batch[:, 0].long().tolist()])
            loss = (self.net(batch / 10) - 1).pow(2).mean()
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    torch.set_num_threads(1)
    seen: list[Any] = []
    checkpoint = ray.train.get_checkpoint()
    is_first = checkpoint is None
    torch.manual_seed(0 if is_first else 99)
    trainer = fl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=RayTrainReportCallback(),
    )
    net, loader = Net(), DataLoader(Noisy(), 2, shuffle=True)
    prepare_trainer(trainer)
    if checkpoint is None:
        trainer.fit(net, loader)
    else:
        with checkpoint.as_directory() as folder:
            trainer.fit(net, loader, ckpt_path=os.path.join(folder, RayTrainReportCallback.CHECKPOINT_NAME))
    result = {
        "world": [trainer.world_size, trainer.num_devices, trainer.num_nodes, trainer.local_rank],
        "environment": type(trainer.strategy.cluster_environment).__name__,
        "weights": [[float(x).hex() for x in p.detach().flatten()] for p in net.parameters()],
        "seen": seen,
        "is_first": is_first,
    }
    Path(config["folder"], f"result-{trainer.global_rank}").write_text(json.dumps(result))


def train(folder: Path, *, fails: bool) -> dict[str, Any]:
    """One job of Ray Train."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    folder.mkdir()
    failures = ray.train.FailureConfig(max_failures=1 if fails else 0)
    job = TorchTrainer(
        work,
        train_loop_config={"folder": str(folder), "fails": fails},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(folder / "stored"), failure_config=failures),
        torch_config=TorchConfig(backend="gloo"),
    )
    found = job.fit()
    with found.checkpoint.as_directory() as stored:
        files = sorted(path.name for path in Path(stored).iterdir())
    ranks = [json.loads((folder / f"result-{rank}").read_text()) for rank in range(2)]
    return {"metrics": found.metrics, "files": files, "ranks": ranks}


def main(folder: Path) -> None:
    import ray

    place = folder / "cluster"  # Ray's sockets lie in it, and their paths must be short
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 * 2**20,
        _temp_dir=str(place),
    )
    try:
        print("RESULT " + json.dumps([train(folder / name, fails=name == "failing") for name in ("whole", "failing")]))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
