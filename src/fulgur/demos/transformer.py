"""A small language model with attention, and the text it reads, to try strategies and schedules with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulgur.module import LightningModule

VOCAB_SIZE = 33278
"""Words of WikiText-2."""
FILE = "wikitext-2.txt"


class Transformer(nn.Module):
    """Encoder and decoder of `torch.nn.Transformer` between an embedding and a layer over the vocabulary.

    Args:
        vocab_size: Words.
        ninp: Width of the embedding; a multiple of `nhead`.
        nhead: Heads of attention.
        nhid: Width within each layer.
        nlayers: Layers of the encoder, and of the decoder.
        dropout: Share of values that training leaves out.
    """

    def __init__(
        self,
        vocab_size: int = VOCAB_SIZE,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.ninp, self.vocab_size = ninp, vocab_size
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            batch_first=True,
            dropout=dropout,
        )
        self.decoder = nn.Linear(ninp, vocab_size)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log probabilities of every word at every place of `target`.

        Args:
            inputs: Word numbers, of shape (batch, length).
            target: The same for what is to be said of them.
            mask: Which places of the target each place may look at; None lets it look at itself and those before.

        Returns:
            Shape (batch * length, vocab_size).
        """
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        scale = math.sqrt(self.ninp)
        source = self.pos_encoder(self.embedding(inputs) * scale)
        wanted = self.pos_encoder(self.embedding(target) * scale)
        output: Tensor = self.decoder(self.transformer(source, wanted, tgt_mask=mask))
        return F.log_softmax(output, dim=-1).view(-1, self.vocab_size)


class PositionalEncoding(nn.Module):
    """Adds to each vector sines and cosines that tell its place.

    Args:
        dim: Width of the vectors.
        dropout: Share of values that training leaves out.
        max_len: Most places.
    """

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        places = torch.arange(max_len, dtype=torch.float32).unsqueeze(1)
        rates = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        table = torch.zeros(max_len, dim)
        table[:, 0::2] = torch.sin(places * rates)
        table[:, 1::2] = torch.cos(places * rates)[:, : dim // 2]
        self.register_buffer("pe", table, persistent=False)
        self.pe: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`x`, of shape (batch, length, dim), with its places."""
        out: Tensor = self.dropout(x + self.pe[: x.shape[1]])
        return out


class Dictionary:
    """Numbers for words, in the order in which they are met."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The number of `word`."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(lines: Iterable[str]) -> tuple[Tensor, Dictionary]:
    """The words of `lines` as numbers, a sign for each line's end after it, and what they stand for."""
    dictionary = Dictionary()
    numbers = [dictionary.add_word(word) for line in lines for word in [*line.split(), "<eos>"]]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


class WikiText2(Dataset[tuple[Tensor, Tensor]]):
    """Blocks of words of a text file, each with the block one word later.

    Args:
        data_dir: Folder that holds the text as ``wikitext-2.txt``.
        block_size: Words of a block.
        download: Accepted; fulgur downloads nothing.

    Raises:
        FileNotFoundError: The file is not there.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str] = "./data", block_size: int = 35, download: bool = True
    ) -> None:
        path = Path(data_dir) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}, and fulgur downloads nothing. Put the text to learn from there, one line a "
                "paragraph: that of WikiText-2, or any other."
            )
        with open(path, encoding="utf-8") as lines:
            self.data, self.dictionary = tokenize(lines)
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """Number of words that are different."""
        return len(self.dictionary)

    def __len__(self) -> int:
        return max(0, (len(self.data) - 1) // self.block_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.block_size
        end = start + self.block_size
        return self.data[start:end], self.data[start + 1 : end + 1]


class LightningTransformer(LightningModule):
    """Learns with `Transformer` what comes next in `WikiText2`, with SGD at a rate of 0.1.

    Args:
        vocab_size: Words.
    """

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        output: Tensor = self.model(inputs, target)
        return output

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, target = batch
        return F.nll_loss(self(inputs, target), target.reshape(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(WikiText2())
