"""The demo language models learn, on a text that the test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulgur
from fulgur.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from fulgur.demos.transformer import LightningTransformer, PositionalEncoding, Transformer, WikiText2, tokenize


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WikiText2:
    """Twelve sentences of six words, where a program looks for them by default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wikitext-2.txt").write_text("the cat sees the small dog\n" * 12, encoding="utf-8")
    return WikiText2(block_size=7)


def test_words_get_numbers_as_they_come_and_lines_an_end() -> None:
    numbers, dictionary = tokenize(["a b a", "c"])

    assert numbers.tolist() == [0, 1, 0, 2, 3, 2]
    assert dictionary.idx2word == ["a", "b", "<eos>", "c"]


def test_a_block_comes_with_the_block_one_word_later(text: WikiText2) -> None:
    inputs, target = text[1]

    assert (len(text), text.vocab_size) == (11, 6)
    assert torch.equal(inputs[1:], target[:-1])
    with pytest.raises(IndexError):
        text[11]


def test_a_text_that_is_not_there_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"wikitext-2\.txt, and fulgur downloads nothing"):
        WikiText2(tmp_path)


def test_places_differ_and_do_not_depend_on_the_batch() -> None:
    encoding = PositionalEncoding(5, dropout=0.0)
    out = encoding(torch.zeros(2, 4, 5))

    assert torch.equal(out[0], out[1])
    assert len({tuple(place) for place in out[0].tolist()}) == 4
    assert out[0, 0].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_the_transformer_gives_probabilities_for_each_place() -> None:
    model = Transformer(vocab_size=6, ninp=8, nhead=2, nhid=8, nlayers=1)
    out = model(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))

    assert out.shape == (6, 6)
    assert torch.allclose(out.exp().sum(1), torch.ones(6))


def test_each_place_of_a_batch_goes_on_where_it_stood() -> None:
    sampler = SequenceSampler(range(11), batch_size=3)

    assert list(sampler) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert len(sampler) == 3


@pytest.mark.parametrize("kind", [LightningTransformer, LightningLSTM])
def test_a_language_model_trains(text: WikiText2, kind: Any) -> None:
    torch.manual_seed(0)
    module = kind(vocab_size=text.vocab_size)
    if kind is LightningLSTM:
        module.model = SimpleLSTM(text.vocab_size, ninp=32, nhid=32, nlayers=1, dropout=0.0)
    loader = DataLoader(text, batch_sampler=SequenceSampler(text, 2))
    losses: list[float] = []

    class Notes(fulgur.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = fulgur.Trainer(accelerator="cpu", max_epochs=30, gradient_clip_val=0.25, callbacks=[Notes()], **off)
    trainer.fit(module, loader)

    assert len(losses) == 150
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]
