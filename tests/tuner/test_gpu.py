"""A search for a batch size against the real end of a device's memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import LightningModule
from fulgur.tuner import Tuner

MIB = 2**20


class Wide(LightningModule):
    """A sample takes 64 MiB in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2
        self.w = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (torch.ones(len(batch), 16 * MIB, device=self.device) * self.w).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(4096, 1), batch_size=self.batch_size)


@pytest.mark.gpu
def test_the_size_found_fits_and_memory_is_free_again(make_trainer: Any) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(4096 * MIB / total)
    model = Wide()
    try:
        size = Tuner(make_trainer(accelerator="gpu", devices=1)).scale_batch_size(model, mode="binsearch", margin=0.0)
        assert 8 < size < 64
        assert torch.cuda.memory_allocated() < 64 * MIB
        make_trainer(accelerator="gpu", devices=1, max_steps=2).fit(model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_a_fit_after_a_search_has_the_bits_of_one_without(make_trainer: Any, net: Any) -> None:
    def fit(searches: bool) -> list[torch.Tensor]:
        model, trainer = net(), make_trainer(accelerator="gpu", devices=1, precision="16-mixed")
        if searches:
            Tuner(trainer).lr_find(model, num_training=30, update_attr=False)
        trainer.fit(model)
        return [value.cpu() for value in model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(fit(True), fit(False), strict=True))
