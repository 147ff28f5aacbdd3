"""Old import paths: one table from each module that programs import to the places where its names are.

A key is a module. Under it stand, for each module of fulgur, the names that live there; ``old=new`` where they differ.
The modules are made from this table when they are imported (`finder.py`), and nothing is imported before it is used.
The layouts of 1.x and 2.x are one tree, for they contradict each other nowhere.
"""

from __future__ import annotations

from functools import cache

_S = "fulgur.compat.standins"

ALIASES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}
"""Packages that are another one under a second name."""

ROOTS = ("lightning", *ALIASES)
"""What `install` answers for; `lightning_utilities` and others that only begin like it are left alone."""

_MODULE = {"fulgur.module": "LightningModule"}
_DATAMODULE = {"fulgur.datamodule": "LightningDataModule"}
_TRAINER = {"fulgur.trainer": "Trainer"}
_CALLBACK = {"fulgur.hooks": "Callback"}
_THROUGHPUT = {"fulgur.fabric.throughput": "Throughput ThroughputMonitor get_available_flops"}
_FABRIC_CLASS = {"fulgur.fabric.fabric": "Fabric"}
_SEED = {"fulgur.rng": "seed_everything"}
_VERSION = {f"{_S}.version": "__version__"}
_RANK_ZERO = {
    "fulgur.rank": "rank_zero_debug rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
    "fulgur.errors": "LightningDeprecationWarning=FulgurDeprecationWarning",
    f"{_S}.warnings": "WarningCache rank_prefixed_message _get_rank",
}
_WARNINGS = {
    "fulgur.errors": "PossibleUserWarning LightningDeprecationWarning=FulgurDeprecationWarning",
    f"{_S}.warnings": "WarningCache disable_possible_user_warnings",
    "fulgur.rank": "rank_zero_deprecation rank_zero_warn",
}
_EXCEPTIONS = {"fulgur.errors": "MisconfigurationException SIGTERMException"}
_FABRIC_LOGGERS = {
    "fulgur.loggers.csv_logs": "CSVLogger",
    "fulgur.loggers.logger": "Logger",
    "fulgur.loggers.tensorboard": "TensorBoardLogger",
}
_LOGGERS = {**_FABRIC_LOGGERS, "fulgur.loggers": "CometLogger LitLogger MLFlowLogger NeptuneLogger WandbLogger"}
_LOGGER = {
    "fulgur.loggers.logger": "DummyLogger Logger rank_zero_experiment _DummyExperiment=DummyExperiment",
    f"{_S}.loggers": "merge_dicts",
}
_CSV = {"fulgur.loggers.csv_logs": "CSVLogger ExperimentWriter"}
_TENSORBOARD = {"fulgur.loggers.tensorboard": "TensorBoardLogger"}
_PRECISIONS = {"fulgur.precision": "DoublePrecision FSDPPrecision HalfPrecision MixedPrecision Precision"}
_LAYER_SYNC = {"fulgur.strategies.layer_sync": "LayerSync TorchSyncBatchNorm"}
_COLLECTIVES = {f"{_S}.collectives": "Collective SingleDeviceCollective TorchCollective"}
_CHECKPOINT_IO = {"fulgur.checkpoint.io": "CheckpointIO TorchCheckpointIO"}
_PROFILERS = {"fulgur.profilers": "AdvancedProfiler PassThroughProfiler Profiler PyTorchProfiler SimpleProfiler"}
_STRATEGIES = {
    "fulgur.strategies": "DDPStrategy DeepSpeedStrategy FSDPStrategy ModelParallelStrategy ParallelStrategy "
    "SingleDeviceStrategy Strategy"
}
_STRATEGY_MODULES = {
    "strategies.deepspeed": {"fulgur.strategies": "DeepSpeedStrategy"},
    "strategies.ddp": {"fulgur.strategies": "DDPStrategy"},
    "strategies.fsdp": {"fulgur.strategies": "FSDPStrategy"},
    "strategies.model_parallel": {"fulgur.strategies": "ModelParallelStrategy"},
    "strategies.parallel": {"fulgur.strategies": "ParallelStrategy"},
    "strategies.single_device": {"fulgur.strategies": "SingleDeviceStrategy"},
    "strategies.strategy": {"fulgur.strategies": "Strategy"},
}
_ENVIRONMENTS = {
    "fulgur.launch.environments": "ClusterEnvironment KubeflowEnvironment LSFEnvironment LightningEnvironment "
    "MPIEnvironment SLURMEnvironment TorchElasticEnvironment"
}
_ENVIRONMENT_MODULES = {
    "plugins.environments": _ENVIRONMENTS,
    "plugins.environments.cluster_environment": {"fulgur.launch.environments": "ClusterEnvironment"},
    "plugins.environments.kubeflow": {"fulgur.launch.environments": "KubeflowEnvironment"},
    "plugins.environments.lightning": {
        "fulgur.launch.environments": "LightningEnvironment",
        "fulgur.launch.ports": "find_free_network_port=find_free_port",
    },
    "plugins.environments.lsf": {"fulgur.launch.environments": "LSFEnvironment"},
    "plugins.environments.mpi": {"fulgur.launch.environments": "MPIEnvironment"},
    "plugins.environments.slurm": {"fulgur.launch.environments": "SLURMEnvironment"},
    "plugins.environments.slurm_environment": {"fulgur.launch.environments": "SLURMEnvironment"},
    "plugins.environments.torchelastic": {"fulgur.launch.environments": "TorchElasticEnvironment"},
}
_ACCELERATORS = {
    "fulgur.accelerators": "Accelerator CPUAccelerator CUDAAccelerator MPSAccelerator find_usable_cuda_devices",
    f"{_S}.devices": "AcceleratorRegistry",
}
_CUDA = {
    "fulgur.accelerators": "CUDAAccelerator find_usable_cuda_devices",
    f"{_S}.devices": "get_nvidia_gpu_stats is_cuda_available num_cuda_devices",
}
_CPU = {"fulgur.accelerators": "CPUAccelerator get_cpu_stats=cpu_stats"}
_MPS = {"fulgur.accelerators": "MPSAccelerator", f"{_S}.devices": "get_device_stats=get_mps_stats"}
_MOVE = {
    "fulgur.data.transfer": "move_data_to_device=move_to_device",
    f"{_S}.tensors": "convert_tensors_to_scalars convert_to_tensors apply_to_collection",
}
_HPARAMS = {
    "fulgur.hparams": "AttributeDict",
    f"{_S}.parsing": "clean_namespace collect_init_args get_init_args is_picklable lightning_getattr lightning_hasattr "
    "lightning_setattr parse_class_init_keys save_hyperparameters str_to_bool str_to_bool_or_int str_to_bool_or_str",
}
_TYPES = {
    "fulgur.optim.configure": "LRSchedulerConfig",
    f"{_S}.types": "CollectibleGroup DistributedDataParallel EPOCH_OUTPUT EVAL_DATALOADERS LRSchedulerConfigType "
    "LRSchedulerPLType LRSchedulerTypeTuple LRSchedulerTypeUnion Optimizable OptimizerConfig OptimizerLRScheduler "
    "OptimizerLRSchedulerConfig RedOpType ReduceOp ReduceLROnPlateau STEP_OUTPUT Steppable TRAIN_DATALOADERS _DEVICE "
    "_EVALUATE_OUTPUT _MAP_LOCATION_TYPE _METRIC _PATH _PREDICT_OUTPUT",
}
_MEMORY = {
    f"{_S}.memory": "garbage_collection_cuda is_cuda_out_of_memory is_cudnn_snafu is_oom_error is_out_of_cpu_memory "
    "recursive_detach"
}
_SUMMARY = {
    "fulgur.callbacks.summary": "LayerSummary ModelSummary=Summary parse_batch_shape summarize "
    "get_human_readable_count=format_count",
    f"{_S}.sizes": "get_formatted_model_size",
}
_SHARED_PARAMETERS = {f"{_S}.sizes": "find_shared_parameters set_shared_parameters"}
_LOADERS = {
    f"{_S}.loaders": "extract_batch_size has_iterable_dataset has_len has_len_all_ranks sized_len "
    "suggested_max_num_workers"
}
_SAMPLE_MODELS = {
    "fulgur.testing.boring": "BoringDataModule BoringModel DemoModel ManualOptimBoringModel RandomDataset "
    "RandomIterableDataset",
    f"{_S}.demos": "BoringDataModuleNoLen IterableBoringDataModule Net RandomDictDataset RandomIterableDatasetWithLen",
}
_LANGUAGE_MODELS = {
    "fulgur.demos.lstm": "LightningLSTM SequenceSampler SimpleLSTM",
    "fulgur.demos.transformer": "LightningTransformer Transformer WikiText2",
}
_CLI = {
    "fulgur.cli": "LRSchedulerCallable LRSchedulerTypeTuple LRSchedulerTypeUnion LightningArgumentParser LightningCLI "
    "OptimizerCallable ReduceLROnPlateau SaveConfigCallback instantiate_class instantiate_module ArgsType",
}
_ARGPARSE = {
    "fulgur.argparsing": "add_argparse_args=add_arguments from_argparse_args=from_arguments "
    "parse_argparser=parse_arguments"
}
_OF_0_9 = {f"{_S}.gone": "EvalResult TrainResult"}
_TOP = {**_CALLBACK, **_DATAMODULE, **_MODULE, **_TRAINER, **_SEED, **_VERSION, **_OF_0_9}
_BAR = {
    "fulgur.callbacks.progress": "ProgressBar ProgressBarBase=ProgressBar",
    f"{_S}.progress": "get_standard_metrics",
}
_RICH_BAR = {"fulgur.callbacks.progress": "RichProgressBar RichProgressBarTheme"}
_TQDM_BAR = {"fulgur.callbacks.tqdm_progress": "TQDMProgressBar", "fulgur.callbacks.tqdm_bar": "Tqdm"} | {
    f"{_S}.progress": "convert_inf"
}
_FABRIC_UTILITIES = {
    "fulgur.data.transfer": "move_data_to_device=move_to_device",
    "fulgur.hparams": "AttributeDict",
    "fulgur.states": "LightningEnum=StrEnum",
    f"{_S}.warnings": "disable_possible_user_warnings",
    f"{_S}.loaders": "suggested_max_num_workers",
    f"{_S}.files": "is_shared_filesystem",
    f"{_S}.sizes": "measure_flops",
    "fulgur.rank": "rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
}

_PYTORCH: dict[str, dict[str, str]] = {
    "": _TOP,
    "__about__": _VERSION,
    "__version__": {f"{_S}.version": "version=__version__ __version__"},
    "accelerators": _ACCELERATORS,
    "accelerators.accelerator": {"fulgur.accelerators": "Accelerator"},
    "accelerators.cpu": _CPU,
    "accelerators.cuda": _CUDA,
    "accelerators.gpu": {"fulgur.accelerators": "GPUAccelerator=CUDAAccelerator CUDAAccelerator"},
    "accelerators.mps": _MPS,
    "cli": _CLI,
    "callbacks": {
        "fulgur.hooks": "Callback",
        "fulgur.callbacks": "BackboneFinetuning BaseFinetuning BasePredictionWriter BatchSizeFinder Checkpoint "
        "DeviceStatsMonitor EMAWeightAveraging EarlyStopping GradientAccumulationScheduler LambdaCallback "
        "LearningRateFinder LearningRateMonitor "
        "ModelCheckpoint ModelPruning ModelSummary OnExceptionCheckpoint ProgressBar ProgressBarBase=ProgressBar "
        "RichModelSummary RichProgressBar SpikeDetection StochasticWeightAveraging TQDMProgressBar "
        "ThroughputMonitor Timer WeightAveraging",
    },
    "callbacks.base": _CALLBACK,
    "callbacks.batch_size_finder": {"fulgur.callbacks.batch_size_finder": "BatchSizeFinder"},
    "callbacks.callback": _CALLBACK,
    "callbacks.checkpoint": {"fulgur.callbacks.checkpoint": "Checkpoint"},
    "callbacks.device_stats_monitor": {"fulgur.callbacks.device_stats_monitor": "DeviceStatsMonitor"},
    "callbacks.early_stopping": {"fulgur.callbacks.early_stopping": "EarlyStopping EarlyStoppingReason"},
    "callbacks.finetuning": {"fulgur.callbacks.finetuning": "BackboneFinetuning BaseFinetuning multiplicative"},
    "callbacks.gradient_accumulation_scheduler": {
        "fulgur.callbacks.gradient_accumulation_scheduler": "GradientAccumulationScheduler"
    },
    "callbacks.lambda_function": {"fulgur.callbacks.lambda_function": "LambdaCallback"},
    "callbacks.lr_finder": {"fulgur.callbacks.lr_finder": "LearningRateFinder"},
    "callbacks.lr_monitor": {"fulgur.callbacks.lr_monitor": "LearningRateMonitor"},
    "callbacks.model_checkpoint": {"fulgur.callbacks.model_checkpoint": "ModelCheckpoint"},
    "callbacks.model_summary": {"fulgur.callbacks.model_summary": "ModelSummary"},
    "callbacks.on_exception_checkpoint": {"fulgur.callbacks.on_exception_checkpoint": "OnExceptionCheckpoint"},
    "callbacks.prediction_writer": {"fulgur.callbacks.prediction_writer": "BasePredictionWriter WriteInterval"},
    "callbacks.progress": {**_BAR, "fulgur.callbacks": "ProgressBar RichProgressBar TQDMProgressBar"},
    "callbacks.progress.base": _BAR,
    "callbacks.progress.progress_bar": _BAR,
    "callbacks.progress.rich_progress": _RICH_BAR,
    "callbacks.progress.tqdm_progress": _TQDM_BAR,
    "callbacks.pruning": {"fulgur.callbacks.pruning": "ModelPruning"},
    "callbacks.rich_model_summary": {"fulgur.callbacks.rich_model_summary": "RichModelSummary"},
    "callbacks.spike": {"fulgur.callbacks.spike": "SpikeDetection"},
    "callbacks.stochastic_weight_avg": {"fulgur.callbacks.stochastic_weight_avg": "StochasticWeightAveraging"},
    "callbacks.throughput_monitor": {"fulgur.callbacks.throughput_monitor": "ThroughputMonitor"},
    "callbacks.timer": {"fulgur.callbacks.timer": "Interval Timer"},
    "callbacks.weight_averaging": {"fulgur.callbacks.weight_averaging": "EMAWeightAveraging WeightAveraging"},
    "core": {**_MODULE, **_DATAMODULE},
    "core.datamodule": _DATAMODULE,
    "core.decorators": {f"{_S}.gone": "auto_move_data"},
    "core.hooks": {f"{_S}.hook_bases": "CheckpointHooks DataHooks ModelHooks"},
    "core.lightning": _MODULE,
    "core.memory": _SUMMARY,
    "core.mixins": {"fulgur.hparams": "HyperparametersMixin"},
    "core.mixins.hparams_mixin": {"fulgur.hparams": "HyperparametersMixin"},
    "core.module": _MODULE,
    "core.optimizer": {
        "fulgur.optim.manual": "LightningOptimizer",
        f"{_S}.optimizers": "do_nothing_closure _MockOptimizer",
    },
    "core.saving": {
        f"{_S}.hparams_files": "convert load_hparams_from_tags_csv load_hparams_from_yaml save_hparams_to_tags_csv "
        "save_hparams_to_yaml update_hparams ModelIO",
        f"{_S}.files": "get_filesystem",
        f"{_S}.models": "_load_from_checkpoint",
    },
    "core.step_result": {f"{_S}.gone": "EvalResult Result TrainResult"},
    "demos": {**_SAMPLE_MODELS, "fulgur.testing.boring": "BoringDataModule BoringModel DemoModel", **_LANGUAGE_MODELS},
    "demos.boring_classes": _SAMPLE_MODELS,
    "demos.lstm": {"fulgur.demos.lstm": "LightningLSTM SequenceSampler SimpleLSTM"},
    "demos.transformer": {
        "fulgur.demos.transformer": "Dictionary LightningTransformer PositionalEncoding Transformer WikiText2 tokenize"
    },
    "loggers": {
        **_LOGGERS,
        "fulgur.loggers.logger": "Logger DummyLogger LightningLoggerBase=Logger",
    },
    "loggers.base": {
        **_LOGGER,
        "fulgur.loggers.logger": "LightningLoggerBase=Logger Logger DummyLogger DummyExperiment rank_zero_experiment",
    },
    "loggers.comet": {"fulgur.loggers": "CometLogger"},
    "loggers.csv_logs": _CSV,
    "loggers.litlogger": {"fulgur.loggers": "LitLogger"},
    "loggers.logger": _LOGGER,
    "loggers.mlflow": {"fulgur.loggers": "MLFlowLogger"},
    "loggers.neptune": {"fulgur.loggers": "NeptuneLogger"},
    "loggers.tensorboard": _TENSORBOARD,
    "loggers.utilities": {f"{_S}.loggers": "_scan_checkpoints"},
    "loggers.wandb": {"fulgur.loggers": "WandbLogger"},
    "loops": {
        "fulgur.loops.evaluate": "_EvaluationLoop=EvaluationLoop EvaluationLoop",
        "fulgur.loops.fit": "_FitLoop=FitLoop FitLoop",
        "fulgur.loops.predict": "_PredictionLoop=PredictLoop PredictionLoop=PredictLoop",
    },
    "loops.evaluation_loop": {"fulgur.loops.evaluate": "_EvaluationLoop=EvaluationLoop"},
    "loops.fit_loop": {"fulgur.loops.fit": "_FitLoop=FitLoop FitLoop"},
    "loops.prediction_loop": {"fulgur.loops.predict": "_PredictionLoop=PredictLoop"},
    "loops.utilities": {f"{_S}.optimizers": "check_finite_loss"},
    "overrides": {},
    "overrides.distributed": {f"{_S}.samplers": "UnrepeatedDistributedSampler UnrepeatedDistributedSamplerWrapper"},
    "plugins": {
        **_CHECKPOINT_IO,
        **_PRECISIONS,
        **_LAYER_SYNC,
        "fulgur.checkpoint.io": "AsyncCheckpointIO CheckpointIO TorchCheckpointIO",
    },
    "plugins.io": {"fulgur.checkpoint.io": "AsyncCheckpointIO CheckpointIO TorchCheckpointIO"},
    "plugins.io.async_plugin": {"fulgur.checkpoint.io": "AsyncCheckpointIO"},
    "plugins.io.checkpoint_plugin": {"fulgur.checkpoint.io": "CheckpointIO"},
    "plugins.io.torch_plugin": {"fulgur.checkpoint.io": "TorchCheckpointIO"},
    "plugins.layer_sync": _LAYER_SYNC,
    "plugins.precision": _PRECISIONS,
    "plugins.precision.amp": {"fulgur.precision": "MixedPrecision"},
    "plugins.precision.double": {"fulgur.precision": "DoublePrecision"},
    "plugins.precision.fsdp": {"fulgur.precision": "FSDPPrecision"},
    "plugins.precision.half": {"fulgur.precision": "HalfPrecision"},
    "plugins.precision.precision": {"fulgur.precision": "Precision"},
    "plugins.precision.precision_plugin": {"fulgur.precision": "PrecisionPlugin=Precision"},
    "profiler": {**_PROFILERS, "fulgur.profilers": _PROFILERS["fulgur.profilers"] + " BaseProfiler=Profiler"},
    "profiler.profilers": {"fulgur.profilers": _PROFILERS["fulgur.profilers"] + " BaseProfiler=Profiler"},
    "profilers": _PROFILERS,
    "profilers.advanced": {"fulgur.profilers": "AdvancedProfiler"},
    "profilers.base": {"fulgur.profilers": "PassThroughProfiler"},
    "profilers.profiler": {"fulgur.profilers": "Profiler"},
    "profilers.pytorch": {"fulgur.profilers.pytorch": "PyTorchProfiler RegisterRecordFunction"},
    "profilers.simple": {"fulgur.profilers": "SimpleProfiler"},
    "strategies": {**_STRATEGIES, "fulgur.strategies.registry": "StrategyRegistry"},
    **_STRATEGY_MODULES,
    **_ENVIRONMENT_MODULES,
    "trainer": {**_TRAINER, **_SEED},
    "trainer.connectors": {},
    "trainer.connectors.accelerator_connector": {
        f"{_S}.connectors": "_AcceleratorConnector _IS_INTERACTIVE _PRECISION_INPUT",
    },
    "trainer.connectors.checkpoint_connector": {"fulgur.earlier": "_CheckpointConnector=CheckpointView"},
    "trainer.connectors.logger_connector": {},
    "trainer.connectors.logger_connector.result": {f"{_S}.connectors": "_OUT_DICT"},
    "trainer.setup": {f"{_S}.connectors": "_log_device_info"},
    "trainer.states": {"fulgur.states": "RunningStage TrainerFn TrainerState TrainerStatus"},
    "trainer.supporters": {"fulgur.data.combine": "CombinedLoader"},
    "trainer.trainer": _TRAINER,
    "tuner": {"fulgur.tuner": "Tuner"},
    "tuner.lr_finder": {"fulgur.tuner.lr_finder": "_LRFinder=LRFinder"},
    "tuner.tuning": {"fulgur.tuner": "Tuner"},
    "utilities": {
        **_FABRIC_UTILITIES,
        **_SHARED_PARAMETERS,
        f"{_S}.sizes": "find_shared_parameters measure_flops set_shared_parameters",
        f"{_S}.parsing": "is_picklable",
        f"{_S}.types": "GradClipAlgorithmType AMPType",
        "fulgur.callbacks.grad_norm": "grad_norm",
        "fulgur.data.combine": "CombinedLoader",
        "fulgur.rank": "rank_zero_debug rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
    },
    "utilities.apply_func": _MOVE,
    "utilities.argparse": _ARGPARSE,
    "utilities.cli": {
        **_CLI,
        f"{_S}.registries": "CALLBACK_REGISTRY DATAMODULE_REGISTRY LOGGER_REGISTRY LR_SCHEDULER_REGISTRY "
        "MODEL_REGISTRY OPTIMIZER_REGISTRY",
    },
    "utilities.cloud_io": {f"{_S}.files": "get_filesystem load atomic_save"},
    "utilities.combined_loader": {"fulgur.data.combine": "CombinedLoader"},
    "utilities.compile": {f"{_S}.compiled": "from_compiled to_uncompiled"},
    "utilities.data": _LOADERS,
    "utilities.distributed": {
        "fulgur.rank": "rank_zero_debug rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
        f"{_S}.strategies": "distributed_available gather_all_tensors sync_ddp sync_ddp_if_available",
    },
    "utilities.enums": {f"{_S}.types": "GradClipAlgorithmType AMPType", "fulgur.states": "LightningEnum=StrEnum"},
    "utilities.exceptions": _EXCEPTIONS,
    "utilities.grads": {"fulgur.callbacks.grad_norm": "grad_norm"},
    "utilities.imports": {f"{_S}.packages": "_RICH_AVAILABLE _TORCHMETRICS_GREATER_EQUAL_1_0_0 _OMEGACONF_AVAILABLE"},
    "utilities.memory": _MEMORY,
    "utilities.migration": {f"{_S}.files": "pl_legacy_patch"},
    "utilities.model_helpers": {f"{_S}.models": "get_torchvision_model is_overridden"},
    "utilities.model_summary": _SUMMARY,
    "utilities.model_summary.model_summary": _SUMMARY,
    "utilities.parameter_tying": _SHARED_PARAMETERS,
    "utilities.parsing": _HPARAMS,
    "utilities.rank_zero": _RANK_ZERO,
    "utilities.seed": {
        "fulgur.rng": "isolate_rng seed_everything reset_seed",
        f"{_S}.seeds": "pl_worker_init_function",
    },
    "utilities.signature_utils": {f"{_S}.models": "is_param_in_hook_signature"},
    "utilities.types": _TYPES,
    "utilities.warnings": _WARNINGS,
}

_FABRIC: dict[str, dict[str, str]] = {
    "": {**_SEED, **_VERSION, **_FABRIC_CLASS, "fulgur.fabric.wrappers": "is_wrapped"},
    "__about__": _VERSION,
    "__version__": {f"{_S}.version": "version=__version__ __version__"},
    "accelerators": _ACCELERATORS,
    "accelerators.accelerator": {"fulgur.accelerators": "Accelerator"},
    "accelerators.cpu": _CPU,
    "accelerators.cuda": _CUDA,
    "accelerators.mps": _MPS,
    "accelerators.registry": {f"{_S}.devices": "call_register_accelerators"},
    "cli": {"fulgur.cli.fabric": "main"},
    "connector": {f"{_S}.connectors": "_PRECISION_INPUT"},
    "fabric": {
        **_FABRIC_CLASS,
        "fulgur.fabric.wrappers": "_FabricDataLoader _FabricModule _FabricOptimizer",
    },
    "loggers": _FABRIC_LOGGERS,
    "loggers.csv_logs": _CSV,
    "loggers.logger": _LOGGER,
    "loggers.tensorboard": _TENSORBOARD,
    "plugins": {**_CHECKPOINT_IO, **_PRECISIONS, "fulgur.launch.environments": "ClusterEnvironment"},
    "plugins.collectives": _COLLECTIVES,
    "plugins.collectives.collective": {f"{_S}.collectives": "Collective"},
    "plugins.collectives.single_device": {f"{_S}.collectives": "SingleDeviceCollective"},
    "plugins.collectives.torch_collective": {f"{_S}.collectives": "TorchCollective"},
    "plugins.io": _CHECKPOINT_IO,
    "plugins.io.checkpoint_io": {"fulgur.checkpoint.io": "CheckpointIO"},
    "plugins.io.torch_io": {"fulgur.checkpoint.io": "TorchCheckpointIO"},
    "plugins.precision": _PRECISIONS,
    "plugins.precision.amp": {"fulgur.precision": "MixedPrecision"},
    "plugins.precision.double": {"fulgur.precision": "DoublePrecision"},
    "plugins.precision.fsdp": {"fulgur.precision": "FSDPPrecision"},
    "plugins.precision.half": {"fulgur.precision": "HalfPrecision"},
    "plugins.precision.precision": {"fulgur.precision": "Precision"},
    "strategies": _STRATEGIES,
    **_STRATEGY_MODULES,
    **_ENVIRONMENT_MODULES,
    "utilities": {**_FABRIC_UTILITIES, "fulgur.fabric.throughput": "Throughput ThroughputMonitor"},
    "utilities.apply_func": _MOVE,
    "utilities.cloud_io": {f"{_S}.files": "get_filesystem"},
    "utilities.data": {"fulgur.hparams": "AttributeDict", **_LOADERS},
    "utilities.device_parser": {
        f"{_S}.devices": "_check_data_type _check_unique _normalize_parse_gpu_string_input num_cuda_devices"
    },
    "utilities.distributed": {
        "fulgur.fabric.loaders": "DistributedSamplerWrapper",
        f"{_S}.files": "is_shared_filesystem",
        f"{_S}.strategies": "_distributed_is_initialized=distributed_available",
    },
    "utilities.enums": {"fulgur.states": "LightningEnum=StrEnum"},
    "utilities.exceptions": {"fulgur.errors": "MisconfigurationException"},
    "utilities.logger": {f"{_S}.loggers": "_add_prefix _convert_params _flatten_dict _sanitize_callable_params"},
    "utilities.rank_zero": _RANK_ZERO,
    "utilities.seed": {
        "fulgur.rng": "reset_seed seed_everything",
        f"{_S}.seeds": "pl_worker_init_function",
    },
    "utilities.spike": {"fulgur.callbacks.spike": "SpikeDetection TrainingSpikeException"},
    "utilities.throughput": {**_THROUGHPUT, f"{_S}.sizes": "measure_flops"},
    "utilities.types": _TYPES,
    "utilities.warnings": _WARNINGS,
    "wrappers": {
        "fulgur.fabric.wrappers": "_FabricDataLoader _FabricModule _FabricOptimizer _unwrap_objects=unwrap_nested "
        "is_wrapped"
    },
}

TABLE: dict[str, dict[str, str]] = {
    "lightning": {**_TOP, **_FABRIC_CLASS},
    "lightning.__about__": _VERSION,
    "lightning.__version__": {f"{_S}.version": "version=__version__ __version__"},
    **{f"lightning.pytorch.{path}".removesuffix("."): homes for path, homes in _PYTORCH.items()},
    **{f"lightning.fabric.{path}".removesuffix("."): homes for path, homes in _FABRIC.items()},
}

GONE = {
    "lightning.pytorch.metrics": "its metrics are a package of their own: `pip install torchmetrics`, "
    "and import them from there",
    "lightning.app": "apps are no part of training",
    "lightning.pytorch.overrides.data_parallel": "DataParallel is gone: use strategy='ddp'",
    "lightning.pytorch.callbacks.gpu_stats_monitor": "use DeviceStatsMonitor",
    "lightning.pytorch.strategies.DDPFullyShardedStrategy": "fairscale's is gone: use FSDPStrategy",
    "lightning.fabric.strategies.dp": "DataParallel is gone: use strategy='ddp'",
    "lightning.pytorch.accelerators.XLAAccelerator": "it does not drive TPUs: use 'cpu', 'cuda' or 'mps'",
    "lightning.pytorch.plugins.XLAPrecision": "it does not drive TPUs",
    "lightning.pytorch.plugins.BitsandbytesPrecision": "quantized layers are not among its precisions",
    "lightning.pytorch.plugins.TransformerEnginePrecision": "it does not drive Transformer Engine: use 'bf16-mixed'",
    "lightning.pytorch.loggers.test_tube": "TestTube is gone: use CSVLogger or TensorBoardLogger",
}
"""Modules that newer versions of the old packages have not got either, with the way out."""


def canonical(path: str) -> str:
    """`path` with today's name of its package.

    Example:
        >>> canonical("pytorch_lightning.callbacks")
        'lightning.pytorch.callbacks'
    """
    root, dot, rest = path.partition(".")
    return ALIASES.get(root, root) + dot + rest


def is_module(path: str) -> bool:
    """Whether `path`, in any spelling, is a module that can be imported."""
    return canonical(path) in TABLE


@cache
def homes_in(module: str) -> dict[str, tuple[str, str]]:
    """For each name in `module` the module of fulgur it lives in, and its name there."""
    homes: dict[str, tuple[str, str]] = {}
    for home, names in TABLE.get(canonical(module), {}).items():
        for entry in names.split():
            old, _, new = entry.partition("=")
            homes[old] = (home, new or old)
    return homes


@cache
def submodules_of(module: str) -> tuple[str, ...]:
    """Names of the modules directly below `module`."""
    prefix = f"{canonical(module)}."
    below = {path[len(prefix) :].partition(".")[0] for path in TABLE if path.startswith(prefix)}
    return tuple(sorted(below))


def explain_missing(module: str, name: str) -> str:
    """Say that `module` has no `name`, and what is nearest to it."""
    path = f"{canonical(module)}.{name}"
    if path in GONE:
        return f"{module}.{name} is not in fulgur: {GONE[path]}."
    return f"fulgur has no {name!r} to import from {module!r}.{_nearest(module, name)}"


def _nearest(module: str, name: str) -> str:
    from difflib import get_close_matches

    elsewhere = [path for path in TABLE if name in homes_in(path)]
    if elsewhere:
        return f" There is {min(elsewhere, key=len)}.{name}."
    here = [*homes_in(module), *submodules_of(module)]
    found = get_close_matches(name, here, n=1, cutoff=0.5) or get_close_matches(name, _all_names(), n=1, cutoff=0.7)
    if not found:
        return ""
    if found[0] in here:
        return f" The nearest there is {module}.{found[0]}."
    home = min((path for path in TABLE if found[0] in homes_in(path)), key=len)
    return f" The nearest there is {home}.{found[0]}."


def _all_names() -> list[str]:
    return sorted({name for path in TABLE for name in homes_in(path)})
