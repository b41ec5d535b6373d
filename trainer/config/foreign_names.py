"""The names that other trainers give to the keys of this one, with the value in the syntax of this one.

They come from `TrainingArguments` of transformers and its example scripts, Lightning's `Trainer`, timm's
`train.py`, scikit-learn, Keras, Ludwig, ultralytics and LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from re import fullmatch

_NUMBER = r"\d+(\.\d+)?(e-?\d+)?"
_COUNT = r"[1-9]\d*"
_COLUMN = r"(?!(true|false|null|none)$)[A-Za-z_]\w*"
_AMOUNT = r"(?=.*[1-9])\d+(\.\d+)?"


@dataclass(frozen=True)
class ForeignName:
    """Names of a key in other trainers, and what does the same here.

    Attributes:
        names: The names, separated by spaces.
        override: The overrides here, separated by spaces; `{}` is the value. Empty if nothing does the same.
        sample: A value that shows the form of the overrides.
        pattern: The values that mean the same here, as a regular expression.
        values: The overrides for single values, instead of `override`; an empty one is the default here.
        note: A sentence about the difference, or about what happens if nothing does the same.
    """

    names: str
    override: str = ""
    sample: str = ""
    pattern: str = r"(?!(true|false|null|none)$)[^\s,\[\]{}]+"
    values: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    is_share: bool = False
    """The value is a share of 1, which is written in percent here."""

    def translate(self, value: str | None) -> str | None:
        """Return the overrides that do the same as this name with a value; None if they depend on more."""
        if value is None or value in self.values:
            return None if value is None else self.values[value]
        if self.values or not self.override or not fullmatch(self.pattern, value):
            return None
        return self.override.format(f"{(Decimal(value) * 100).normalize():f}%" if self.is_share else value)

    def remedy(self, value: str | None) -> str:
        """Return what to do instead of setting this name to a value."""
        overrides = self.translate(value)
        if overrides == "":
            remedy = "Leave it out: this is the default"
        elif overrides is not None:
            remedy = f"Set {overrides}"
        elif self.override:
            key = self.override.split()[-1].partition("=")[0]
            remedy = f"Set {key}, such as {self.override.format(self.sample)}"
        else:
            return self.note
        return ". ".join(filter(None, [remedy, self.note]))

    def fits(self, known: Collection[str]) -> bool:
        """Return whether all its overrides set keys and groups in `known`, or keys of an option that they choose."""
        overrides = [self.override, *self.values.values()]
        keys = [text.partition("=")[0] for each in overrides for text in each.split()]
        chosen = {key for key in keys if "." not in key}
        return all(key in known or ("." in key and key.partition(".")[0] in chosen & {*known}) for key in keys)


def _options(group: str, options: str) -> dict[str, str]:
    """Return the choice of each of some options of a group, by its names here and in other trainers."""
    here = {name: name for name in options.split()} | dict(FOREIGN_VALUES[group])
    return {name: f"{group}={option}" for name, option in here.items()}


def _switch(names: str, on: str, off: str = "", note: str = "") -> ForeignName:
    return ForeignName(names, on, "true", values={"true": on, "false": off}, note=note)


def _nothing(names: str, note: str) -> ForeignName:
    return ForeignName(names, note=note)


FOREIGN_VALUES: Mapping[str, Mapping[str, str]] = {
    "precision": {
        **dict.fromkeys(("16", "16-mixed", "16-true", "float16", "half", "amp", "mixed", "mixed_float16"), "fp16"),
        **dict.fromkeys(("bf16-mixed", "bf16-true", "bfloat16", "mixed_bfloat16"), "bf16"),
        **dict.fromkeys(("32", "32-true", "float32", "float", "full", "no"), "fp32"),
        "tensorfloat32": "tf32",
    },
    "device": {"gpu": "cuda", "gpu:0": "cuda:0"},
    "resume": {"True": "auto run.name=mine"},
    "loss": {
        **dict.fromkeys(("ce", "cross-entropy", "crossentropy", "nll", "softmax_cross_entropy"), "cross_entropy"),
        **dict.fromkeys(("categorical_crossentropy", "sparse_categorical_crossentropy"), "cross_entropy"),
        **dict.fromkeys(("CrossEntropyLoss", "NLLLoss", "CategoricalCrossentropy", "log_loss"), "cross_entropy"),
        **dict.fromkeys(("binary_crossentropy", "BCELoss", "BCEWithLogitsLoss"), "binary_cross_entropy"),
        **{"FocalLoss": "focal", "DiceLoss": "dice", "MSELoss": "mse", "L1Loss": "mae", "HuberLoss": "huber"},
        **dict.fromkeys(("CRF", "linear_chain_crf"), "crf"),
        **dict.fromkeys(("GlobalPointer", "globalpointer"), "global_pointer"),
        **dict.fromkeys(("bce", "bce_with_logits", "sigmoid_cross_entropy"), "binary_cross_entropy"),
        **dict.fromkeys(("l2", "mean_squared_error"), "mse"),
        **dict.fromkeys(("l1", "mean_absolute_error"), "mae"),
        **dict.fromkeys(("smooth_l1", "SmoothL1Loss"), "huber"),
        **dict.fromkeys(("MultipleNegativesRankingLoss", "InfoNCE", "contrastive"), "info_nce"),
        "mnrl": "info_nce",
    },
    "optimizer": {
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "fusedadamw", "AdamW"), "adamw"),
        **{"Adam": "adam", "SGD": "sgd"},
    },
    "perturb": {
        **{name: name.lower() for name in ("FGM", "PGD", "AWP")},
        **dict.fromkeys(("rdrop", "r-drop", "RDrop", "R-Drop"), "r_drop"),
    },
    "loader.sampler": {
        **dict.fromkeys(("WeightedRandomSampler", "weighted_random"), "weighted"),
        **dict.fromkeys(("class_balanced", "oversample", "ClassBalancedSampler", "balanced_batch"), "balanced"),
        **dict.fromkeys(("random", "shuffle", "RandomSampler", "DistributedSampler"), "shuffled"),
    },
    "scheduler": {"reduce_lr_on_plateau": "reduce_on_plateau", "plateau": "reduce_on_plateau", "one_cycle": "onecycle"},
}
"""Values that other trainers give to keys and groups that have the same name here, and the value here."""


_INTERVALS = "A number is optimizer steps, 1ep is an epoch"
_TIME = r"\d+(\.\d+)?[smhd]"
_BATCH = "It counts the samples of one optimizer step, over all devices and micro-batches"
_EVALUATIONS = "It is a duration, not a number of evaluations"

_METRICS: Mapping[str, str] = {
    **{name: name for name in ("loss", "accuracy", "macro_f1", "micro_f1", "mae", "rmse", "r2")},
    **{"acc": "accuracy", "f1": "macro_f1", "f1_macro": "macro_f1", "f1_micro": "micro_f1"},
}
"""Metrics of the tasks, by their names elsewhere."""

FOREIGN_NAMES: Sequence[ForeignName] = (
    # The length of the run and its batches
    ForeignName(
        "epochs epoch num_epochs n_epochs nb_epochs max_epochs max_epoch num_train_epochs training_epochs max_iter",
        "train.duration={}ep",
        "3",
        _AMOUNT,
    ),
    ForeignName(
        "max_steps num_steps n_steps train_steps max_train_steps num_train_steps total_steps num_training_steps "
        "training_steps iterations num_iterations max_iters",
        "train.duration={}",
        "1000",
        _COUNT,
    ),
    ForeignName("max_time time_limit time_budget max_train_time", "train.max_time={}", "4h", _TIME),
    ForeignName(
        "batch_size batch bs b train_batch_size global_batch_size per_device_train_batch_size "
        "per_gpu_train_batch_size device_train_batch_size micro_batch_size",
        "train.batch_size={}",
        "32",
        _COUNT,
        note=_BATCH,
    ),
    ForeignName(
        "eval_batch_size val_batch_size validation_batch_size test_batch_size per_device_eval_batch_size "
        "per_gpu_eval_batch_size",
        "loader.eval_batch_size={}",
        "64",
        _COUNT,
    ),
    ForeignName(
        "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches grad_accum_steps grad_accum "
        "accumulation_steps accum_iter",
        "train.accumulate={}",
        "4",
        _COUNT,
        note="It divides train.batch_size into micro-batches instead of multiplying it",
    ),
    _switch("auto_find_batch_size auto_scale_batch_size", "train.accumulate=auto"),
    _nothing(
        "drop_last dataloader_drop_last", "Leave it out: the last, smaller step of an epoch counts by its targets"
    ),
    _nothing(
        "steps_per_epoch",
        "Leave it out: an epoch is one pass over the data. train.duration and train.eval_every may be steps",
    ),
    _nothing("initial_epoch", "Leave it out: resume=RUN goes on at its place"),
    _nothing("min_epochs min_steps", "Leave it out: a run ends early only if train.patience is set"),
    # Optimizers and schedules
    ForeignName(
        "lr learning_rate base_lr base_learning_rate learning_rate_init init_lr initial_lr max_lr peak_lr lr0 eta",
        "optimizer.lr={}",
        "3e-4",
        rf"auto|{_NUMBER}",
    ),
    _switch("lr_find auto_lr_find lr_finder", "optimizer.lr=auto"),
    ForeignName("weight_decay wd l2 decay_weight", "optimizer.weight_decay={}", "0.01", _NUMBER),
    ForeignName("adam_beta1 beta1 beta_1", "optimizer.betas=[{},0.999]", "0.9", _NUMBER),
    ForeignName("adam_beta2 beta2 beta_2", "optimizer.betas=[0.9,{}]", "0.98", _NUMBER),
    ForeignName("adam_epsilon adam_eps epsilon eps opt_eps", "optimizer.eps={}", "1e-8", _NUMBER),
    ForeignName("momentum", "optimizer=sgd optimizer.momentum={}", "0.9", _NUMBER),
    ForeignName(
        "optim opt optimizer_name optimizer_type solver optim_name",
        "optimizer={}",
        "adamw",
        values=_options("optimizer", "adamw adam sgd adafactor lion muon lamb"),
    ),
    ForeignName("layer_decay layerwise_lr_decay lr_layer_decay", "optimizer.layer_decay={}", "0.9", _NUMBER),
    ForeignName(
        "sched lr_scheduler lr_scheduler_type scheduler_type lr_schedule schedule learning_rate_schedule",
        "scheduler={}",
        "cosine",
        values=_options(
            "scheduler",
            "linear cosine cosine_with_restarts cosine_with_min_lr polynomial constant constant_with_warmup "
            "inverse_sqrt warmup_stable_decay reduce_on_plateau onecycle greedy",
        ),
    ),
    ForeignName("warmup_steps num_warmup_steps warmup_iters lr_warmup_steps", "scheduler.warmup={}", "100", r"\d+"),
    ForeignName("warmup_epochs lr_warmup_epochs", "scheduler.warmup={}ep", "1", _NUMBER),
    ForeignName(
        "warmup_ratio warmup_fraction warmup_proportion warmup_pct",
        "scheduler.warmup={}",
        "10%",
        r"0|1|0?\.\d+",
        is_share=True,
    ),
    ForeignName(
        "min_lr lr_min end_lr eta_min",
        "scheduler=cosine_with_min_lr scheduler.min_factor={}",
        "0.1",
        "(?!)",
        note="It is the ratio of the last learning rate to optimizer.lr",
    ),
    ForeignName(
        "lrf min_lr_ratio final_lr_factor",
        "scheduler=cosine_with_min_lr scheduler.min_factor={}",
        "0.1",
        r"0|1|0?\.\d+",
    ),
    _switch("cos_lr use_cosine", "scheduler=cosine"),
    ForeignName(
        "reduce_lr reduce_lr_factor lr_factor plateau_factor",
        "scheduler=reduce_on_plateau scheduler.factor={}",
        "0.5",
        r"0?\.\d+",
    ),
    ForeignName(
        "lr_patience patience_epochs_lr plateau_patience",
        "scheduler=reduce_on_plateau scheduler.patience={}",
        "2",
        r"\d+",
        note="It counts evaluations",
    ),
    _nothing(
        "decay_epochs decay_rate decay_milestones milestones lr_step_size step_size cooldown_epochs",
        "No schedule falls in steps: choose scheduler=linear, scheduler=cosine or scheduler=warmup_stable_decay",
    ),
    _nothing("optim_args optimizer_kwargs", "Set the keys of the optimizer, such as optimizer.eps=1e-8"),
    _nothing("lr_scheduler_kwargs scheduler_kwargs", "Set the keys of the schedule, such as scheduler.warmup=10%"),
    ForeignName(
        "gradient_clip_val clip_grad clip_grad_norm grad_clip grad_clip_norm gradient_clipping max_grad_norm "
        "grad_norm_clip clip_norm clipnorm global_clipnorm",
        "train.max_grad_norm={}",
        "1.0",
        rf"null|{_AMOUNT}",
    ),
    _nothing(
        "clip_mode gradient_clip_algorithm clipvalue",
        "Leave it out: gradients are clipped by their norm, train.max_grad_norm",
    ),
    # Regularization and the average of weights
    ForeignName("label_smoothing_factor smoothing label_smoothing", "loss.label_smoothing={}", "0.1", _NUMBER),
    _nothing(
        "kernel_regularizer regularization_lambda l2_regularization reg_lambda",
        "Set optimizer.weight_decay, such as optimizer.weight_decay=0.01",
    ),
    _nothing(
        "drop_path drop_path_rate stochastic_depth", "No model leaves out layers at random; model.dropout is there"
    ),
    ForeignName("drop dropout_rate drop_rate hidden_dropout_prob", "model.dropout={}", "0.1", _NUMBER),
    ForeignName("model_ema_decay ema_decay", "ema.decay={}", "0.999", _NUMBER),
    _switch("model_ema use_ema ema_weights", "ema.decay=0.999", "ema.decay=null"),
    ForeignName(
        "class_weight class_weights", values={"balanced": "loss.weight=auto"}, override="loss.weight={}", sample="auto"
    ),
    ForeignName(
        "criterion loss_fn loss_function objective",
        "loss={}",
        "cross_entropy",
        values=_options("loss", "cross_entropy focal poly dice binary_cross_entropy mse mae huber"),
    ),
    _switch("bce_loss use_bce", "loss=binary_cross_entropy"),
    ForeignName(
        "adversarial_training adversarial adv_training adv_train adv_type adv_method use_adv attack attack_method",
        "perturb={}",
        "fgm",
        values=_options("perturb", "fgm pgd awp r_drop") | {"true": "perturb=fgm", "false": ""},
    ),
    *(_switch(f"{name} use_{name}", f"perturb={name}") for name in ("fgm", "pgd", "awp", "r_drop")),
    _switch("rdrop use_rdrop", "perturb=r_drop"),
    ForeignName("adv_epsilon adv_eps fgm_epsilon", "perturb=fgm perturb.epsilon={}", "1.0", _AMOUNT),
    ForeignName("adv_alpha pgd_alpha adv_lr", "perturb=pgd perturb.alpha={}", "0.3", _AMOUNT),
    ForeignName("adv_k adv_steps adv_step pgd_k pgd_steps", "perturb=pgd perturb.moves={}", "3", _COUNT),
    ForeignName("awp_gamma awp_lr", "perturb=awp perturb.gamma={}", "0.005", _AMOUNT),
    ForeignName(
        "rdrop_alpha r_drop_alpha rdrop_coef kl_alpha kl_weight", "perturb=r_drop perturb.alpha={}", "1.0", _AMOUNT
    ),
    ForeignName("adv_start adv_start_epoch awp_start_epoch", "perturb=fgm perturb.start={}ep", "1", r"\d+"),
    ForeignName(
        "emb_name embedding_name adv_param",
        "perturb=fgm perturb.targets=[*{}*]",
        "token_embedding",
        r"[\w.]+",
        note="Without perturb.targets, the embeddings of tokens move",
    ),
    _nothing(
        "alpha",
        "It is a key of a part: loss.alpha of loss=focal, perturb.alpha of perturb=r_drop and of perturb=pgd",
    ),
    ForeignName(
        "multisample_dropout multi_sample_dropout num_dropouts n_dropouts",
        "model.head_dropout=0.5 model.multi_sample_dropout={}",
        "5",
        _COUNT,
    ),
    ForeignName(
        "classifier_dropout head_dropout head_drop cls_dropout fc_dropout", "model.head_dropout={}", "0.1", r"0?\.\d+|0"
    ),
    _switch("crf use_crf", "task=token_classification loss=crf"),
    _switch(
        "GlobalPointer use_global_pointer nested_ner EfficientGlobalPointer",
        "task=span_classification loss=global_pointer",
    ),
    _nothing(
        "neftune_noise_alpha", "Nothing adds noise to embeddings; model.noisy_tune adds noise to the weights once"
    ),
    # Evaluations, checkpoints, logs
    ForeignName(
        "eval_steps eval_interval eval_freq eval_every validate_every evaluation_steps steps_per_evaluation "
        "evaluate_every_n_steps",
        "train.eval_every={}",
        "500",
        _COUNT,
        note=_INTERVALS,
    ),
    ForeignName("check_val_every_n_epoch eval_every_n_epochs", "train.eval_every={}ep", "1", _COUNT),
    ForeignName("val_check_interval", "train.eval_every={}", "0.5ep", _COUNT, note=_INTERVALS),
    ForeignName(
        "eval_strategy evaluation_strategy",
        "train.eval_every={}",
        "500",
        values={"epoch": "train.eval_every=1ep"},
        note=_INTERVALS,
    ),
    ForeignName(
        "save_steps save_every save_interval checkpointing_steps save_freq every_n_train_steps steps_per_checkpoint "
        "checkpoint_every",
        "checkpoint.every={}",
        "500",
        _COUNT,
        note=_INTERVALS,
    ),
    ForeignName(
        "every_n_epochs save_every_n_epochs save_period checkpoints_per_epoch", "checkpoint.every={}ep", "1", _COUNT
    ),
    ForeignName(
        "save_strategy",
        "checkpoint.every={}",
        "500",
        values={"epoch": "checkpoint.every=1ep", "best": "checkpoint.every=1ep"},
        note=_INTERVALS,
    ),
    ForeignName(
        "save_total_limit save_top_k checkpoint_hist keep_last_n", "checkpoint.keep={}", "2", r"[2-9]|[1-9]\d+"
    ),
    ForeignName(
        "metric_for_best_model monitor eval_metric validation_metric scoring best_metric",
        "checkpoint.monitor={}",
        "loss",
        values={
            f"{prefix}{name}": f"checkpoint.monitor={metric}"
            for prefix in ("", "val_", "eval_", "valid_", "validation_")
            for name, metric in _METRICS.items()
        },
    ),
    _nothing(
        "load_best_model_at_end restore_best_weights save_best_only enable_checkpointing",
        "Leave it out: the best checkpoint is kept, scored and exported",
    ),
    _nothing(
        "tol min_delta early_stopping_threshold early_stopping_min_delta",
        "Leave it out: the smallest improvement counts for train.patience",
    ),
    _nothing(
        "callbacks callback",
        "train.patience stops early, checkpoint.every and checkpoint.keep decide what is saved, and observers takes "
        "functions of your own",
    ),
    _nothing("greater_is_better mode", "Leave it out: the direction of each metric is known"),
    ForeignName(
        "early_stopping_patience early_stop patience_epochs early_stopping_rounds",
        "train.patience={}ep",
        "3",
        _COUNT,
        note=_EVALUATIONS,
    ),
    ForeignName("n_iter_no_change", "train.patience={}ep", "10", _COUNT),
    ForeignName("patience", "train.patience={}ep", "3", _COUNT, note=_EVALUATIONS),
    ForeignName("early_stopping", "train.patience={}", "3ep", values={"false": ""}),
    ForeignName(
        "logging_steps log_interval log_every_n_steps log_steps print_freq log_freq log_every",
        "train.log_every={}",
        "10",
        _COUNT,
    ),
    ForeignName(
        "logging_strategy", "train.log_every={}", "10", values={"epoch": "train.log_every=1ep"}, note=_INTERVALS
    ),
    _nothing("logging_first_step", "Leave it out: set train.log_every=1 to see every step"),
    _nothing("logging_dir log_dir", "Leave it out: the logs are in the run folder, run.dir"),
    _nothing(
        "detect_anomaly terminate_on_nan",
        "Leave it out: a loss or gradient that is not finite ends the run with a report",
    ),
    _nothing("num_sanity_val_steps", "Leave it out: debug=smoke tries a few steps of everything"),
    _nothing("plot_loss plots", "Leave it out: report.html shows the curves of every run"),
    _nothing("logging_nan_inf_filter", "Leave it out: a loss that is not finite ends the run with a report"),
    ForeignName(
        "report_to",
        "logger.trackers=[{}]",
        "wandb",
        values={
            "tensorboard": "logger.tensorboard=true",
            "none": "logger.tensorboard=false",
            **{name: f"logger.trackers=[{name}]" for name in ("wandb", "mlflow", "swanlab")},
        },
    ),
    _switch("log_wandb use_wandb wandb", "logger.trackers=[wandb]"),
    _switch("disable_tqdm no_progress_bar", "logger.console=plain"),
    _switch("enable_progress_bar progress_bar", "logger.console=rich", "logger.console=plain"),
    ForeignName(
        "verbose verbosity quiet",
        "logger.console={}",
        "plain",
        values={"0": "logger.console=none", "false": "logger.console=none", "1": "logger.console=plain", "true": ""},
    ),
    _switch("fast_dev_run smoke_test dry_run", "debug=smoke"),
    ForeignName("max_train_samples max_samples subset_size sample_size", "loader.limit={}", "1000", _COUNT),
    _nothing("overfit_batches limit_train_batches limit_val_batches", "Set loader.limit, a number of samples, instead"),
    _nothing(
        "prediction_loss_only include_inputs_for_metrics", "Leave it out: an evaluation has the loss and all metrics"
    ),
    # The folder and the name of the run
    ForeignName(
        "output_dir output out_dir save_dir logdir default_root_dir checkpoint_dir work_dir output_directory",
        "run.dir={}",
        "runs/mine",
    ),
    ForeignName("run_name name exp_name experiment_name", "run.name={}", "mine"),
    _nothing("overwrite_output_dir exist_ok", "Leave it out: a run never replaces another; resume=RUN continues one"),
    ForeignName(
        "resume_from_checkpoint ckpt_path resume_from resume_path model_resume_path",
        "resume={}",
        "runs/mine",
        values={"true": "run.name=mine resume=auto", "false": "", "null": ""},
    ),
    ForeignName(
        "initial_checkpoint load_weights init_from pretrained_weights", "model.weights={}", "model.safetensors"
    ),
    _nothing("ignore_data_skip", "Leave it out: a resumed run goes on at its place in the data"),
    _nothing(
        "push_to_hub hub_model_id hub_token hub_strategy",
        "Leave it out: training sends nothing to the hub; afterwards run trainer push to=owner/name",
    ),
    _nothing(
        "project entity wandb_project", "Set run.dir for the folder of the run; trackers read their own environment"
    ),
    _nothing(
        "warm_start", "Set model.weights, the weights of a run or file to start from, or resume, a run to continue"
    ),
    # Devices and numbers
    _switch("fp16 half use_fp16 amp use_amp native_amp mixed_precision", "precision=fp16", "precision=fp32"),
    _switch("bf16 bfloat16 use_bf16", "precision=bf16", "precision=fp32"),
    _switch("tf32 allow_tf32", "precision=tf32", "precision=fp32"),
    _nothing("fp16_full_eval bf16_full_eval", "Leave it out: trainer eval has precision=fp16 and precision=bf16"),
    _nothing("fp16_opt_level fp16_backend half_precision_backend", "Leave it out: precision chooses the number format"),
    ForeignName(
        "accelerator device_type",
        "device={}",
        "auto",
        values={
            "gpu": "device=cuda",
            "cuda": "device=cuda",
            "cpu": "device=cpu",
            "mps": "device=mps",
            "auto": "device=auto",
        },
    ),
    _switch("use_cpu no_cuda cpu", "device=cpu", "device=auto"),
    _switch("cuda use_gpu use_cuda", "device=cuda", "device=cpu"),
    ForeignName("gpu gpu_id", "device=cuda:{}", "0", r"\d{1,3}"),
    ForeignName("gpus num_gpus n_gpu num_devices nproc_per_node num_processes", "devices={}", "2", rf"auto|{_COUNT}"),
    ForeignName(
        "strategy distributed_strategy",
        "devices={}",
        "auto",
        values={"ddp": "devices=auto", "auto": ""},
        note="Add shard=true to divide the weights among several devices",
    ),
    ForeignName("fsdp deepspeed", "devices={} shard=true", "2", "(?!)"),
    _nothing(
        "local_rank ddp_backend num_nodes", "Leave it out: devices=N starts the processes; torchrun and Slurm work too"
    ),
    _nothing("ddp_find_unused_parameters", "Leave it out: parameters without a gradient are no problem"),
    _switch("torch_compile torchcompile use_compile compile_model jit_compile", "compile=true", "compile=false"),
    _switch(
        "gradient_checkpointing grad_checkpointing activation_checkpointing enable_gradient_checkpointing",
        "model.gradient_checkpointing=blocks",
        "model.gradient_checkpointing=none",
    ),
    ForeignName("random_state random_seed manual_seed data_seed seed_everything rng_seed", "seed={}", "42", r"\d+"),
    _nothing(
        "attn_implementation flash_attn use_flash_attn flash_attention use_flash_attention",
        "Leave it out: the fastest attention that the device has is chosen",
    ),
    _nothing("run_eagerly", "Leave it out: compile=false is the default"),
    _nothing(
        "load_in_4bit load_in_8bit quantization_bit",
        "Weights are trained in fp32; export.formats=[onnx_int8] makes them small",
    ),
    _switch("full_determinism", "deterministic=true", "deterministic=false"),
    _switch("cudnn_benchmark", "deterministic=false", "deterministic=true"),
    # The data
    ForeignName(
        "num_workers workers dataloader_num_workers n_jobs n_workers j num_data_workers",
        "loader.workers={}",
        "4",
        r"\d+",
    ),
    ForeignName("prefetch_factor dataloader_prefetch_factor", "loader.prefetch={}", "2", _COUNT),
    _switch("pin_memory pin_mem dataloader_pin_memory", "loader.pin_memory=true", "loader.pin_memory=false"),
    _switch(
        "persistent_workers dataloader_persistent_workers",
        "loader.persistent_workers=true",
        "loader.persistent_workers=false",
    ),
    ForeignName(
        "packing sample_packing", "loader.batching={}", "packed", values={"true": "", "false": "loader.batching=padded"}
    ),
    _nothing(
        "cache cache_dataset preprocessing_num_workers dataset_num_proc",
        "Leave it out: encoded data is cached, and read again only if it changes",
    ),
    _switch("group_by_length length_grouping bucket_by_length train_sampling_strategy", "loader.batching=bucketed"),
    ForeignName(
        "sampler train_sampler sampling_method",
        "loader.sampler={}",
        "balanced",
        values={name: f"loader.sampler={here}" for name, here in FOREIGN_VALUES["loader.sampler"].items()},
    ),
    _switch("class_balanced balanced_sampling oversample oversampling balance_classes", "loader.sampler=balanced"),
    ForeignName(
        "WeightedRandomSampler weighted_sampler weighted_sampling sample_weight sample_weights weight_column",
        "loader.sampler=weighted loader.weights={}",
        "weight",
        _COLUMN,
        note="It names a column of numbers, or gives weights of classes: {animal: 2}",
    ),
    _nothing(
        "mixture data_mix dataset_weights sampling_weights mixing_weights interleave_probs",
        "The shares of the files of data.train are data.mix={a.csv: 0.7, b.csv: 0.3}",
    ),
    _nothing("shuffle", "Leave it out: training is shuffled by seed and epoch, evaluations are not"),
    _nothing("remove_unused_columns label_names", "Leave it out: the task names the columns that it reads"),
    ForeignName(
        "train_file train_data train_path training_set train_dataset data_path data_file dataset_path train_csv",
        "data=files data.train={}",
        "train.csv",
    ),
    ForeignName(
        "validation_file eval_file val_file valid_file validation_set val_data dev_file val_path valid_path "
        "validation_data",
        "data=files data.validation={}",
        "dev.csv",
    ),
    ForeignName("test_file test_data test_set", "data=files data.test={}", "test.csv"),
    # Keys of several options: a file like these belongs to one of them.
    *(
        ForeignName(f"data.{split}", f"data=files data.{split}={{}}", "my.csv", r"\S+\.(csv|tsv|jsonl?|parquet|arrow)")
        for split in ("train", "validation", "test")
    ),
    ForeignName(
        "dataset dataset_name hub_dataset",
        "data=hub data.path={}",
        "stanfordnlp/imdb",
        r"(?!\.|.*\.(csv|tsv|jsonl?|parquet|arrow|txt)$)[\w.-]+/[\w.-]+|(?!(true|false)$)[\w-]+",
        note="For a file of your own: trainer init my.csv",
    ),
    _nothing(
        "input_features output_features dataset_dir dataset_info",
        "trainer init my.csv looks at your data and writes the job for it",
    ),
    # Images
    ForeignName(
        "img_size image_size imgsz input_size resolution",
        "task=image_classification task.size={}",
        "64",
        r"[1-9]\d{0,3}",
    ),
    *(
        ForeignName(names, f"task=image_classification task.augment.{key}={{}}", sample, r"0|1|0?\.\d+")
        for names, key, sample in (
            ("mixup mixup_alpha", "mixup", "0.2"),
            ("cutmix cutmix_alpha", "cutmix", "1.0"),
            ("hflip fliplr horizontal_flip random_flip flip_prob", "flip", "0.5"),
            ("hsv_v brightness_jitter", "brightness", "0.2"),
        )
    ),
    ForeignName("degrees rotation random_rotation", "task=image_classification task.augment.rotate={}", "10", _AMOUNT),
    _nothing(
        "aa auto_augment rand_augment randaugment augmentation augmentations color_jitter reprob random_erasing "
        "train_transforms transforms",
        "Random changes of images are task.augment: crop, flip, rotate, brightness, contrast, cutout, mixup, cutmix",
    ),
    _nothing("crop_pct interpolation", "task.resize=stretch, crop or pad fits images to task.size"),
    _nothing("num_classes num_labels nb_classes n_classes", "Leave it out: the classes are those of the training data"),
    ForeignName("data_dir image_folder image_dir train_dir", "data=imagefolder data.root={}", "images"),
    ForeignName("text_column text_column_name sentence1_key input_column", "data=files data.text={}", "text"),
    ForeignName(
        "label_column label_column_name target target_column label_col output_column",
        "data=files data.label={}",
        "label",
    ),
    ForeignName(
        "validation_split validation_fraction val_split valid_size val_size",
        "data=files data.split.validation={}",
        "0.1",
        _NUMBER,
    ),
    ForeignName("test_size test_split", "data=files data.split.test={}", "0.1", _NUMBER),
    ForeignName(
        "groups group_col group_column group_key GroupKFold GroupShuffleSplit StratifiedGroupKFold",
        "data=files data.split.group={}",
        "patient",
        _COLUMN,
    ),
    ForeignName(
        "stratify stratified stratify_by StratifiedKFold StratifiedShuffleSplit",
        "data=files data.split.stratify={}",
        "label",
        _COLUMN,
    ),
    ForeignName(
        "TimeSeriesSplit time_column time_col date_column timestamp_column",
        "data=files data.split.time={}",
        "created",
        _COLUMN,
    ),
    _nothing(
        "eval_datasets eval_files validation_sets validation_files val_sets val_files valid_sets extra_validation",
        "Several named sets are data.validation={clean: a.csv, noisy: b.csv}",
    ),
    ForeignName("n_splits cv n_folds num_folds k_fold kfold", "data.folds={}", "5", r"[2-9]|[1-9]\d{1,2}"),
    # The model and the task
    ForeignName(
        "model_name_or_path model_name model_path pretrained_model_name_or_path base_model checkpoint_path backbone",
        "model=pretrained model.path={}",
        "google-bert/bert-base-uncased",
    ),
    ForeignName(
        "model_type arch architecture",
        "model={}",
        "text_encoder",
        values={name: f"model={name}" for name in ("text_encoder", "decoder", "mlp", "convnet", "resnet", "vit")},
    ),
    ForeignName(
        "pretrained", "model=pretrained model.path={}", "google-bert/bert-base-uncased", "(?!)", values={"false": ""}
    ),
    ForeignName(
        "activation hidden_act activation_function", "model=mlp model.activation={}", "gelu", "relu|gelu|silu|tanh"
    ),
    ForeignName("hidden_layer_sizes", "model=mlp model.hidden={}", "[100]", r"\[\d+\]"),
    _nothing(
        "n_estimators max_depth num_leaves max_leaf_nodes C",
        "Models here are neural networks; for tables, model=linear and model=mlp",
    ),
    _nothing(
        "max_features ngram_range vocabulary_size", "Texts become tokens of a vocabulary of task.vocab_size entries"
    ),
    _nothing("template chat_template", "Leave it out: chat messages become lines `role: content`"),
    ForeignName(
        "max_seq_length max_seq_len max_sequence_length max_len block_size cutoff_len seq_len seq_length "
        "max_source_length",
        "task.max_length={}",
        "128",
        r"[3-9]|[1-9]\d+",
    ),
    ForeignName("tokenizer_name tokenizer_path", "task.tokenizer={}", "./tokenizer"),
    ForeignName("hidden_size d_model embed_dim hidden_dim units", "model.dim={}", "128", _COUNT),
    ForeignName("num_layers num_hidden_layers n_layers", "model.depth={}", "2", _COUNT),
    ForeignName("num_heads num_attention_heads n_heads", "model.heads={}", "4", _COUNT),
    ForeignName("lora_r lora_rank", "model.lora={{rank:{}}}", "8", _COUNT),
    ForeignName("lora_alpha", "model.lora={{alpha:{}}}", "16", _NUMBER),
    ForeignName("lora_dropout", "model.lora={{dropout:{}}}", "0.1", r"0?\.\d+|0"),
    ForeignName(
        "lora_target target_modules lora_target_modules", "model.lora={{targets:{}}}", "all-linear", r"all-linear"
    ),
    ForeignName("finetuning_type peft_type", "model.lora={{}}", "lora", values={"lora": "model.lora={}", "full": ""}),
    ForeignName("use_lora lora use_peft", "model.lora={{}}", "true", "true"),
    _nothing("do_train do_eval do_predict", "Choose a verb instead: trainer train, trainer eval, trainer predict"),
)

FOREIGN_VERBS: Mapping[str, str] = {
    **dict.fromkeys(("fit", "finetune", "fine-tune", "run", "start", "launch", "pretrain"), "train"),
    **dict.fromkeys(("sweep", "tune", "hyperopt"), "train --multirun"),
    "resume": "train resume=auto run.name=NAME",
    "test": "eval split=test",
    "validate": "eval split=validation",
    **dict.fromkeys(("infer", "inference", "classify", "embed"), "predict"),
    **dict.fromkeys(("chat", "sample"), "generate"),
    **dict.fromkeys(("convert", "onnx", "quantize"), "export"),
    **dict.fromkeys(("create", "new", "quickstart"), "init"),
    **dict.fromkeys(("env", "check", "debug"), "doctor"),
    **dict.fromkeys(("summary", "dry-run"), "plan"),
    **dict.fromkeys(("visualize", "plot"), "report"),
    "compare": "diff",
    **{"help": "--help", **dict.fromkeys(("version", "-v", "-V"), "--version")},
}
"""The verbs of other trainers, and the verb here."""


@cache
def _by_name() -> dict[str, ForeignName]:
    return {name: each for each in FOREIGN_NAMES for name in each.names.split()}


def foreign_name(path: str) -> ForeignName | None:
    """Return what is known of a key, or of its last name, as a name of other trainers."""
    return _by_name().get(path) or _by_name().get(path.rpartition(".")[2].replace("-", "_"))


def foreign_value(key: str, value: object) -> str | None:
    """Return the value of a key here for a value of other trainers; None if it is not known."""
    return FOREIGN_VALUES.get(key, {}).get(str(value))


def as_text(value: object) -> str:
    """Return a parsed value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
