"""A small recurrent language model whose state goes on from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from fulgur.demos.transformer import VOCAB_SIZE, WikiText2
from fulgur.module import LightningModule

Hidden = tuple[Tensor, Tensor]


class SimpleLSTM(nn.Module):
    """An embedding, `torch.nn.LSTM`, and a layer over the vocabulary.

    Args:
        vocab_size: Words.
        ninp: Width of the embedding.
        nhid: Width of the state.
        nlayers: Layers of the LSTM.
        dropout: Share of values that training leaves out.
    """

    def __init__(
        self, vocab_size: int = VOCAB_SIZE, ninp: int = 512, nhid: int = 512, nlayers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocab_size, self.nhid, self.nlayers = vocab_size, nhid, nlayers
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        for weight in (self.encoder.weight, self.decoder.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Log probabilities of the words that follow, of shape (batch * length, vocab_size), and the next state.

        Args:
            input: Word numbers, of shape (batch, length).
            hidden: The state, from `init_hidden` or the call before.
        """
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return F.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch_size: int) -> Hidden:
        """The state before the first word: zeros."""
        like = self.decoder.weight
        shape = (self.nlayers, batch_size, self.nhid)
        return like.new_zeros(shape), like.new_zeros(shape)


class SequenceSampler(Sampler[list[int]]):
    """Batches of indices in which each place goes on where it stood in the batch before.

    Args:
        dataset: Its items follow each other.
        batch_size: Sequences that are read side by side.
    """

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.chunk_size = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.chunk_size):
            yield [place * self.chunk_size + step for place in range(self.batch_size)]

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(LightningModule):
    """Learns with `SimpleLSTM` what comes next in `WikiText2`, with SGD at a rate of 20. Clip its gradients at 0.25.

    Args:
        vocab_size: Words.
    """

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=vocab_size)
        self.hidden: Hidden | None = None

    def on_train_epoch_end(self) -> None:
        self.hidden = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        hidden = self.hidden or self.model.init_hidden(inputs.size(0))
        output, hidden = self.model(inputs, (hidden[0].detach(), hidden[1].detach()))
        self.hidden = hidden
        loss = F.nll_loss(output, target.reshape(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=20.0)

    def train_dataloader(self) -> Any:
        dataset = WikiText2()
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=20))
