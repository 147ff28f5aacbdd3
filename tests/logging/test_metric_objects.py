"""torchmetrics objects as logged values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.errors import MisconfigurationException

torchmetrics = pytest.importorskip("torchmetrics")


def with_metric(tiny: Any, metric: Any, **methods: Any) -> Any:
    module = tiny(**methods)
    module.metric = metric
    return module


def test_step_value_is_the_batchs_and_epoch_value_the_metrics_own(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.metric(batch)
        self.log("m", self.metric, on_step=True, on_epoch=True)
        return self.layer(batch).mean()

    trainer = make_trainer(max_epochs=2)
    trainer.fit(with_metric(tiny, torchmetrics.MeanMetric(), training_step=training_step), loader(5, 2))
    assert recorder.rows_with("m_step") == [(0.5, 0), (2.5, 1), (4.0, 2), (0.5, 3), (2.5, 4), (4.0, 5)]
    assert recorder.rows_with("m_epoch") == [(2.0, 2), (2.0, 5)]
    assert trainer.callback_metrics == {"m": 2.0, "m_step": 4.0, "m_epoch": 2.0}


def test_metric_is_reset_after_each_evaluation_and_after_the_sanity_check(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.metric.update(batch)
        self.log("total", self.metric)

    module = with_metric(tiny, torchmetrics.SumMetric(), validation_step=validation_step)
    make_trainer(max_epochs=2).fit(module, loader(1), loader(4))
    assert recorder.rows_with("total") == [(6.0, 0), (6.0, 1)]
    assert not module.metric.update_called


def test_metric_that_is_only_updated_has_no_step_value(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.metric.update(batch)
        self.log("m", self.metric, on_step=True, on_epoch=True, prog_bar=True)
        return self.layer(batch).mean()

    trainer = make_trainer()
    trainer.fit(with_metric(tiny, torchmetrics.MeanMetric(), training_step=training_step), loader(5, 2))
    assert recorder.rows == [({"m_epoch": 2.0, "epoch": 0}, 2)]
    assert trainer.progress_bar_metrics == {"m_epoch": 2.0}


def test_accuracy_over_the_epoch_is_that_over_all_samples(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def test_step(self: Any, batch: Any, batch_idx: int) -> None:
        target = (batch.flatten() >= 2).long()
        self.metric(torch.zeros_like(target), target)
        self.log("accuracy", self.metric)

    metric = torchmetrics.Accuracy(task="binary")
    results = make_trainer().test(with_metric(tiny, metric, test_step=test_step), loader(5, 2), verbose=False)
    assert results == [{"accuracy": pytest.approx(2 / 5)}]


@pytest.mark.parametrize("compute_groups", [True, False])
def test_collection_is_logged_item_by_item(
    compute_groups: bool, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        target = (batch.flatten() >= 2).long()
        self.metric.update(torch.ones_like(target), target)
        self.log_dict(self.metric)

    collection = torchmetrics.MetricCollection(
        {"precision": torchmetrics.Precision(task="binary"), "recall": torchmetrics.Recall(task="binary")},
        prefix="val_",
        compute_groups=compute_groups,
    )
    module = with_metric(tiny, collection, validation_step=validation_step)
    make_trainer(max_epochs=2).fit(module, loader(1), loader(5, 2))
    assert recorder.rows_with("val_precision") == [(pytest.approx(3 / 5), 0), (pytest.approx(3 / 5), 1)]
    assert recorder.rows_with("val_recall") == [(1.0, 0), (1.0, 1)]


def test_collection_called_in_a_training_step_has_step_values(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.metric(batch)
        self.log_dict(self.metric, on_step=True, on_epoch=True)
        return self.layer(batch).mean()

    collection = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric(), "max": torchmetrics.MaxMetric()})
    make_trainer().fit(with_metric(tiny, collection, training_step=training_step), loader(5, 2))
    assert recorder.rows_with("mean_step") == [(0.5, 0), (2.5, 1), (4.0, 2)]
    assert recorder.rows_with("max_step") == [(1.0, 0), (3.0, 1), (4.0, 2)]
    assert recorder.rows[-1] == ({"mean_epoch": 2.0, "max_epoch": 4.0, "epoch": 0}, 2)


def test_metric_the_module_does_not_own_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    metric = torchmetrics.MeanMetric()

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("m", metric)
        return self.layer(batch).mean()

    with pytest.raises(MisconfigurationException, match=r"self\.metric = MeanMetric"):
        make_trainer().fit(tiny(training_step=training_step), loader())


def test_metric_with_a_named_attribute_is_taken_as_it_is(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.holder["metric"](batch)
        self.log("m", self.holder["metric"], on_step=False, on_epoch=True, metric_attribute="holder")
        return self.layer(batch).mean()

    module = tiny(training_step=training_step)
    module.holder = {"metric": torchmetrics.MeanMetric()}
    make_trainer().fit(module, loader(5, 2))
    assert recorder.rows == [({"m": 2.0, "epoch": 0}, 2)]


def test_metric_whose_value_is_no_tensor_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    class Two(torchmetrics.MeanMetric):  # type: ignore[misc,name-defined]
        def compute(self) -> Any:
            return {"a": 1.0}

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.metric.update(batch)
        self.log("m", self.metric)

    module = with_metric(tiny, Two(), validation_step=validation_step)
    with pytest.raises(ValueError, match=r"compute\(\) returned a dict"):
        make_trainer().validate(module, loader(), verbose=False)


def test_epoch_values_of_metrics_keep_no_graph(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        self.metric(loss)
        self.log("m", self.metric, on_step=True, on_epoch=True)
        return loss

    trainer = make_trainer()
    trainer.fit(with_metric(tiny, torchmetrics.MeanMetric(), training_step=training_step), loader())
    assert not any(value.requires_grad for value in trainer.callback_metrics.values())


def test_metric_of_the_module_is_stored_with_it(tiny: Any) -> None:
    module = with_metric(tiny, torchmetrics.MeanMetric())
    module.metric.persistent(True)
    assert "metric.mean_value" in module.state_dict()
