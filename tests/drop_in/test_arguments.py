from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from headstart.drop_in import arguments
from headstart.drop_in.argument_old_names import OLD_NAMES, OldArguments
from headstart.drop_in.argument_tables import (
    ACCELERATOR_HARMLESS,
    ACCELERATOR_REFUSED,
    HARMLESS,
    HONOURED,
    REFUSED,
    SEQ2SEQ_REFUSED,
)
from headstart.drop_in.arguments import (
    TrainingArguments,
    UnknownArgumentError,
    check_arguments,
    chosen_mode,
    tensorboard_folder,
)
from headstart.errors import HeadstartWarning, RecipeError

Make = Callable[..., transformers.TrainingArguments]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART", "TENSORBOARD_LOGGING_DIR", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    # One process on one device, whatever the machine has.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def made_by_transformers(**values: Any) -> transformers.TrainingArguments:
    """Set the fields afterwards: transformers itself may look for the packages that a field needs."""
    args = transformers.TrainingArguments("out", use_cpu=True)
    for name, value in values.items():
        setattr(args, name, value)
    return args


def made_here(**values: Any) -> transformers.TrainingArguments:
    return TrainingArguments("out", use_cpu=True, **values)


BOTH = pytest.mark.parametrize("make", [made_by_transformers, made_here])


def names_of(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}  # type: ignore[arg-type]


def test_each_field_of_the_installed_transformers_stands_in_one_table() -> None:
    upstream = names_of(transformers.TrainingArguments)
    tables = [*HONOURED, *HARMLESS, *REFUSED]
    assert set(tables) == upstream
    assert len(tables) == len(set(tables))


def test_the_smaller_tables_match_the_installed_transformers() -> None:
    assert set(ACCELERATOR_HARMLESS) | set(ACCELERATOR_REFUSED) == names_of(AcceleratorConfig)
    assert not set(ACCELERATOR_HARMLESS) & set(ACCELERATOR_REFUSED)
    assert set(SEQ2SEQ_REFUSED) == names_of(Seq2SeqTrainingArguments) - names_of(transformers.TrainingArguments)


def test_own_fields_are_two_and_the_old_names() -> None:
    own = names_of(TrainingArguments) - names_of(transformers.TrainingArguments)
    assert own == {"headstart", "logging_dir", *OLD_NAMES}
    assert list(OLD_NAMES) == [field.name for field in fields(OldArguments)]


REFUSED_VALUES: dict[str, Any] = {
    "fp16": True,
    "fp16_full_eval": True,
    "torch_compile": True,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "max-autotune",
    "use_liger_kernel": True,
    "parallelism_config": object(),
    "fsdp": "full_shard",
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "debug": "underflow_overflow",
    "optim": "lomo",
    "include_for_metrics": ["input"],
    "train_sampling_strategy": "batch_rebalance",
    "ddp_backend": "mpi",
}


def test_every_refused_field_and_every_limit_is_tried() -> None:
    limited = {name for name, limit in HONOURED.items() if limit is not None}
    assert set(REFUSED_VALUES) == set(REFUSED) | limited - {"save_on_each_node"}


@BOTH
@pytest.mark.parametrize(("name", "value"), REFUSED_VALUES.items())
def test_a_refused_field_stops_before_anything_starts(make: Make, name: str, value: Any) -> None:
    limit = HONOURED.get(name)
    instead = REFUSED[name] if limit is None else limit.instead
    with pytest.raises(RecipeError) as caught:
        check_arguments(make(**{name: value}))
    assert str(caught.value).count("\n- ") == 1
    assert f"- {name}=" in str(caught.value)
    assert instead in str(caught.value)


def test_all_refused_fields_are_in_one_message() -> None:
    values = {**REFUSED_VALUES, "torch_compile": False}
    with pytest.raises(RecipeError) as caught:
        made_here(**values, accelerator_config={"split_batches": True})
    for name in [*values, "accelerator_config: split_batches"]:
        assert name == "torch_compile" or f"- {name}=" in str(caught.value)


def test_what_transformers_has_converted_is_shown_as_written() -> None:
    args = transformers.TrainingArguments("out", use_cpu=True, debug="underflow_overflow", torch_compile_mode="default")
    with pytest.raises(RecipeError, match=r"- torch_compile=True: .*\n- debug=\['underflow_overflow'\]: ") as caught:
        check_arguments(args)
    assert "torch_compile_" not in str(caught.value)  # the switch is named, not what follows from it


def test_the_nearest_sampling_strategy_is_offered() -> None:
    with pytest.raises(RecipeError, match=r'Did you mean "group_by_length"\?\n'):
        made_here(train_sampling_strategy="group_by_lenght")


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_honoured_sampling_strategies_pass(strategy: str) -> None:
    assert check_arguments(made_here(train_sampling_strategy=strategy)) == []


def test_every_optimizer_passes_that_updates_after_the_backward_pass() -> None:
    from transformers.training_args import OptimizerNames

    refused = set()
    for optimizer in OptimizerNames:
        try:
            assert check_arguments(made_by_transformers(optim=optimizer)) == []
        except RecipeError:
            refused.add(optimizer.value)
    layerwise = {name.value for name in OptimizerNames if name.value.endswith("_layerwise")}
    assert refused == {"lomo", "adalomo"} | layerwise


def test_saving_on_each_node_is_refused_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_arguments(made_by_transformers(save_on_each_node=True)) == []
    args = made_by_transformers(save_on_each_node=True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"save_on_each_node=True: .* shared folder"):
        check_arguments(args)


HARMLESS_VALUES: dict[str, Any] = {
    "auto_find_batch_size": True,
    "torch_empty_cache_steps": 10,
    "average_tokens_across_devices": False,
    "enable_jit_checkpoint": True,
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 25,
    "ddp_static_graph": True,
    "ddp_broadcast_buffers": False,
    "fsdp_config": {"min_num_params": 1},
    "liger_kernel_config": {"rope": True},
}


def test_every_harmless_field_is_tried() -> None:
    assert set(HARMLESS_VALUES) == set(HARMLESS)


@BOTH
@pytest.mark.parametrize(("name", "value"), HARMLESS_VALUES.items())
def test_a_harmless_field_is_told_in_one_line(make: Make, name: str, value: Any) -> None:
    (line,) = check_arguments(make(**{name: value}))
    assert line == f"{name}={value!r} has no effect: {HARMLESS[name]}."


@BOTH
def test_defaults_tell_nothing(make: Make) -> None:
    assert check_arguments(make()) == []


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"dispatch_batches": True}, "dispatch_batches=True has no effect: each process"),
        ({"even_batches": False}, "even_batches=False has no effect: an epoch"),
        ({"use_seedable_sampler": False}, "use_seedable_sampler=False has no effect: the order"),
        ({"non_blocking": True}, "non_blocking=True has no effect: it changes"),
    ],
)
def test_harmless_parts_of_the_accelerator_config_are_told(config: dict[str, Any], found: str) -> None:
    (line,) = check_arguments(made_here(accelerator_config=config))
    assert line.startswith(f"accelerator_config: {found}")


@pytest.mark.parametrize("given", ["dict", "json", "path", "object"])
@pytest.mark.parametrize(
    ("config", "instead"),
    [
        ({"split_batches": True}, "per_device_train_batch_size"),
        ({"gradient_accumulation_kwargs": {"num_steps": 4}}, "gradient_accumulation_steps"),
    ],
)
def test_refused_parts_of_the_accelerator_config(
    config: dict[str, Any], instead: str, given: str, tmp_path: Path
) -> None:
    path = tmp_path / "accelerator.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    values = {"dict": config, "json": json.dumps(config), "path": str(path), "object": AcceleratorConfig(**config)}
    with pytest.raises(RecipeError, match=f"accelerator_config: {next(iter(config))}=.*: set {instead}"):
        made_here(accelerator_config=values[given])


def test_how_often_gradients_travel_is_nobodys_business() -> None:
    assert (
        check_arguments(made_here(accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}})) == []
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sortish_sampler", True),
        ("predict_with_generate", True),
        ("generation_max_length", 20),
        ("generation_num_beams", 4),
        ("generation_config", "folder"),
    ],
)
def test_what_a_seq2seq_trainer_does_is_refused(name: str, value: Any) -> None:
    assert check_arguments(Seq2SeqTrainingArguments("out", use_cpu=True)) == []
    with pytest.raises(RecipeError, match=f"- {name}=.*: {SEQ2SEQ_REFUSED[name].split('(')[0]}"):
        check_arguments(Seq2SeqTrainingArguments("out", use_cpu=True, **{name: value}))


@pytest.mark.parametrize("table", [HONOURED, HARMLESS, REFUSED], ids=["honoured", "harmless", "refused"])
def test_a_field_that_headstart_does_not_know_is_refused_when_set(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = {id(HONOURED): ("seed", 7), id(HARMLESS): ("ddp_bucket_cap_mb", 9), id(REFUSED): ("fp16", True)}[
        id(table)
    ]
    monkeypatch.delitem(table, name)
    assert check_arguments(made_by_transformers()) == []
    with pytest.raises(RecipeError, match=f"{name}={value}: transformers .* does not know it"):
        check_arguments(made_by_transformers(**{name: value}))


def test_precision_of_accelerates_configuration_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(RecipeError, match=r'mixed precision "fp16" .*ACCELERATE_MIXED_PRECISION'):
        check_arguments(transformers.TrainingArguments("out", use_cpu=True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert check_arguments(transformers.TrainingArguments("out", use_cpu=True)) == []


def test_gpus_that_stay_idle_are_told() -> None:
    args = made_by_transformers()
    args._n_gpu = 4
    (line,) = check_arguments(args)
    assert line.startswith("4 GPUs are here") and "torchrun --nproc_per_node 4" in line


def test_fields_of_a_users_own_class_are_the_users() -> None:
    @dataclass
    class Mine(transformers.TrainingArguments):
        debug_level: int = 0

    assert check_arguments(Mine("out", use_cpu=True, debug_level=3)) == []


# Old name, its value, fields given beside it, the fields that it becomes, what is said.
OLD: list[tuple[str, Any, dict[str, Any], dict[str, Any], str]] = [
    ("evaluation_strategy", "epoch", {}, {"eval_strategy": "epoch", "do_eval": True}, "eval_strategy='epoch'"),
    ("evaluation_strategy", "no", {}, {"eval_strategy": "no"}, "eval_strategy='no'"),
    ("evaluate_during_training", True, {}, {"eval_strategy": "steps", "eval_steps": 500}, "eval_strategy='steps'"),
    ("evaluate_during_training", False, {}, {"eval_strategy": "no"}, "has no effect"),
    ("per_gpu_train_batch_size", 4, {}, {"per_device_train_batch_size": 4}, "per_device_train_batch_size=4"),
    ("per_gpu_eval_batch_size", 4, {}, {"per_device_eval_batch_size": 4}, "per_device_eval_batch_size=4"),
    ("warmup_ratio", 0.1, {}, {"warmup_steps": 0.1}, "warmup_steps=0.1"),
    ("warmup_ratio", 0.0, {}, {"warmup_steps": 0}, "has no effect"),
    ("warmup_ratio", 0.1, {"warmup_steps": 50}, {"warmup_steps": 50}, "warmup_steps=50 counts"),
    ("group_by_length", True, {}, {"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy="),
    ("group_by_length", False, {}, {"train_sampling_strategy": "random"}, "has no effect"),
    ("adafactor", True, {}, {"optim": "adafactor"}, "optim='adafactor'"),
    ("no_cuda", True, {"use_cpu": False}, {"use_cpu": True}, "use_cpu=True"),
    ("no_cuda", False, {"use_cpu": True}, {"use_cpu": True}, "has no effect"),
    ("include_inputs_for_metrics", True, {}, {"include_for_metrics": ["inputs"]}, "include_for_metrics=['inputs']"),
    (
        "include_inputs_for_metrics",
        True,
        {"include_for_metrics": ["loss"]},
        {"include_for_metrics": ["loss", "inputs"]},
        "include_for_metrics=['loss', 'inputs']",
    ),
    ("include_tokens_per_second", True, {}, {"include_num_input_tokens_seen": "all"}, "seen='all'"),
    ("push_to_hub_token", "hf_secret", {}, {"hub_token": "hf_secret"}, "hub_token=..."),
    ("push_to_hub_model_id", "mine", {}, {"hub_model_id": "mine"}, "hub_model_id='mine'"),
    ("push_to_hub_organization", "we", {}, {"hub_model_id": "we/out"}, "hub_model_id='we/out'"),
    ("overwrite_output_dir", True, {}, {}, "never empties the folder"),
    ("use_legacy_prediction_loop", True, {}, {}, "has no effect"),
    ("jit_mode_eval", True, {}, {}, "has no effect"),
    ("use_ipex", True, {}, {}, "has no effect"),
    ("use_mps_device", True, {}, {}, "has no effect"),
    ("fp16_backend", "apex", {}, {}, "has no effect"),
    ("half_precision_backend", "cuda_amp", {}, {}, "has no effect"),
    ("fp16_opt_level", "O2", {}, {}, "has no effect"),
    ("fsdp_min_num_params", 5, {}, {}, "has no effect"),
    ("fsdp_transformer_layer_cls_to_wrap", "BertLayer", {}, {}, "has no effect"),
    ("mp_parameters", "x", {}, {}, "has no effect"),
    ("ray_scope", "all", {}, {}, "hyperparameter_search"),
    ("tpu_num_cores", 8, {}, {}, "has no effect"),
    ("tpu_metrics_debug", False, {}, {"debug": []}, "has no effect"),
    ("past_index", -1, {}, {}, "has no effect"),
    ("save_safetensors", True, {}, {}, "has no effect"),
    ("sharded_ddp", "", {}, {}, "has no effect"),
    ("tp_size", 0, {}, {}, "has no effect"),
]
# Old name, a value that is refused, what to use instead.
OLD_REFUSED: list[tuple[str, Any, str]] = [
    ("tpu_metrics_debug", True, "nothing for TPUs"),
    ("past_index", 2, "no state is carried"),
    ("save_safetensors", False, "always written as safetensors"),
    ("sharded_ddp", "simple", "holds the whole model"),
    ("tp_size", 2, "holds the whole model"),
    ("torchdynamo", "inductor", "torch_compile_backend='inductor': models are not compiled"),
    ("split_batches", True, "per_device_train_batch_size"),
    ("xpu_backend", "mpi", "ddp_backend='mpi': take gloo (CPU) or nccl (GPU)"),
    ("warmup_ratio", 1.5, "between 0 and 1"),
]


def test_every_old_name_is_tried() -> None:
    assert {row[0] for row in OLD} | {row[0] for row in OLD_REFUSED} | {"dispatch_batches"} == set(OLD_NAMES)


@pytest.mark.parametrize(("name", "value", "beside", "wanted", "said"), OLD)
def test_an_old_name_means_what_it_is_called_today(
    name: str, value: Any, beside: dict[str, Any], wanted: dict[str, Any], said: str
) -> None:
    with pytest.warns(HeadstartWarning) as caught:
        args = TrainingArguments("out", **{"use_cpu": True, **beside, name: value})
    (warning,) = caught
    message = str(warning.message)
    assert said in message and "\n" not in message and "hf_secret" not in message
    assert warning.filename == __file__
    assert {new: getattr(args, new) for new in wanted} == wanted
    assert getattr(args, name) == value or name in ("evaluate_during_training", "no_cuda", "warmup_ratio")
    check_arguments(args)


@pytest.mark.filterwarnings("ignore::headstart.errors.HeadstartWarning")
@pytest.mark.parametrize(("name", "value", "instead"), OLD_REFUSED)
def test_an_old_name_is_refused_where_the_result_would_change(name: str, value: Any, instead: str) -> None:
    with pytest.raises(RecipeError) as caught:
        TrainingArguments("out", use_cpu=True, **{name: value})
    assert instead in str(caught.value)


@pytest.mark.filterwarnings("ignore::headstart.errors.HeadstartWarning")
class TestOldNames:
    def test_dispatch_batches_joins_the_accelerator_config(self) -> None:
        args = TrainingArguments("out", use_cpu=True, dispatch_batches=True, accelerator_config={"even_batches": False})
        config = args.accelerator_config
        assert isinstance(config, AcceleratorConfig)
        assert config.dispatch_batches is True and config.even_batches is False
        with pytest.raises(RecipeError, match="accelerator_config says dispatch_batches=False"):
            TrainingArguments("out", dispatch_batches=True, accelerator_config={"dispatch_batches": False})
        with pytest.raises(RecipeError, match="set dispatch_batches in accelerator_config"):
            TrainingArguments("out", dispatch_batches=True, accelerator_config=AcceleratorConfig())

    @pytest.mark.parametrize("total", [1, 3, 7, 1000, 123_457])
    @pytest.mark.parametrize("ratio", [0.06, 0.5, 1.0, 1])
    def test_a_warmup_ratio_gives_the_steps_it_always_gave(self, ratio: float, total: int) -> None:
        import math

        args = TrainingArguments("out", use_cpu=True, warmup_ratio=ratio)
        assert args.get_warmup_steps(total) == math.ceil(total * ratio)

    def test_an_organization_and_a_name_make_one_repository(self) -> None:
        args = TrainingArguments("out", use_cpu=True, push_to_hub_model_id="mine", push_to_hub_organization="we")
        assert args.hub_model_id == "we/mine"

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ({"evaluation_strategy": "epoch", "eval_strategy": "steps"}, "eval_strategy"),
            ({"per_gpu_train_batch_size": 4, "per_device_train_batch_size": 16}, "per_device_train_batch_size"),
            ({"adafactor": True, "optim": "sgd"}, "optim"),
            ({"group_by_length": True, "train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
            ({"push_to_hub_model_id": "a", "hub_model_id": "b"}, "hub_model_id"),
            ({"evaluation_strategy": "epoch", "evaluate_during_training": True}, "eval_strategy"),
        ],
    )
    def test_an_old_and_a_new_name_must_not_contradict_each_other(self, given: dict[str, Any], kept: str) -> None:
        with pytest.raises(RecipeError, match=f"contradicts {kept}=.*Keep {kept}"):
            TrainingArguments("out", use_cpu=True, **given)

    def test_the_same_value_under_both_names_is_fine(self) -> None:
        args = TrainingArguments("out", use_cpu=True, evaluation_strategy="epoch", eval_strategy="epoch")
        assert args.eval_strategy == "epoch"

    def test_a_script_can_read_the_old_names(self) -> None:
        args = TrainingArguments("out", use_cpu=True, eval_strategy="epoch", optim="adafactor", warmup_steps=0.25)
        assert (args.evaluation_strategy, args.no_cuda, args.adafactor, args.warmup_ratio) == (
            "epoch",
            True,
            True,
            0.25,
        )
        assert (args.overwrite_output_dir, args.past_index, args.group_by_length) == (False, -1, False)
        assert args.fp16_opt_level == "O1" and args.save_safetensors and args.logging_dir is None

    def test_an_old_name_that_is_set_afterwards_is_not_lost(self) -> None:
        args = TrainingArguments("out", use_cpu=True)
        args.evaluation_strategy = "epoch"
        with pytest.raises(RecipeError, match="evaluation_strategy='epoch' was set too late"):
            check_arguments(args)

    def test_old_names_are_no_part_of_what_trackers_get(self) -> None:
        args = TrainingArguments("out", use_cpu=True, evaluation_strategy="epoch", hub_token="hf_secret")
        upstream = names_of(transformers.TrainingArguments)
        assert set(args.to_dict()) == {*upstream, "headstart", "logging_dir"}
        assert set(json.loads(args.to_json_string())) == set(args.to_dict())
        assert "evaluation_strategy" not in str(args) and "eval_strategy" in str(args)
        assert "hf_secret" not in str(args) + repr(args) + args.to_json_string()


@pytest.mark.parametrize(
    ("field", "value", "today"),
    [
        ("optim", "adamw_hf", "adamw_torch"),
        ("optim", "adamw_apex_fused", "adamw_torch_fused"),
        ("report_to", None, []),
    ],
)
def test_an_old_value_is_read_as_what_it_is_today(field: str, value: Any, today: Any) -> None:
    with pytest.warns(HeadstartWarning, match=f"{field}={value!r} is read as {field}="):
        args = TrainingArguments("out", use_cpu=True, **{field: value})
    assert getattr(args, field) == today


def test_copies_are_not_told_the_old_names_again() -> None:
    with pytest.warns(HeadstartWarning):
        args = TrainingArguments(
            "out", use_cpu=True, evaluation_strategy="epoch", warmup_ratio=0.1, overwrite_output_dir=True
        )
    for copied in (
        replace(args, learning_rate=1.0, eval_strategy="steps", warmup_steps=10),
        pickle.loads(pickle.dumps(args)),
        copy.deepcopy(args),
    ):
        assert type(copied) is TrainingArguments
        assert copied.overwrite_output_dir
    changed = replace(args, learning_rate=1.0, eval_strategy="steps", warmup_steps=10)
    assert (changed.learning_rate, changed.eval_strategy, changed.warmup_steps) == (1.0, "steps", 10)
    assert changed.evaluation_strategy == "steps"


def test_other_processes_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings(record=True) as caught:
        args = TrainingArguments("out", use_cpu=True, evaluation_strategy="epoch")
    assert not caught and args.eval_strategy == "epoch"


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(
        UnknownArgumentError, match=r'no argument "lerning_rate". Did you mean "learning_rate"\?'
    ) as caught:
        TrainingArguments("out", lerning_rate=1e-4, xyzzy=1)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, RecipeError)
    assert 'no argument "xyzzy".' in str(caught.value)
    with pytest.raises(TypeError, match=r"belongs to Seq2SeqTrainingArguments: generate with model.generate"):
        TrainingArguments("out", predict_with_generate=True)


def test_a_users_subclass_keeps_all_of_it() -> None:
    @dataclass
    class Mine(TrainingArguments):
        alpha: float = 0.5

    with pytest.warns(HeadstartWarning, match="eval_strategy") as caught:
        args = Mine("out", use_cpu=True, evaluation_strategy="epoch", alpha=0.1)
    assert caught[0].filename == __file__
    assert (args.alpha, args.eval_strategy) == (0.1, "epoch")
    with pytest.raises(TypeError, match=r'Mine has no argument "alhpa". Did you mean "alpha"'):
        Mine("out", alhpa=1)

    class Other(TrainingArguments):
        def __init__(self, folder: str, **values: Any) -> None:
            super().__init__(folder, **values)

    assert Other(folder="out", use_cpu=True, seed=1).seed == 1


def test_it_is_a_training_arguments_of_transformers() -> None:
    args = TrainingArguments("out", 4, use_cpu=True)
    assert isinstance(args, transformers.TrainingArguments)
    assert (args.output_dir, args.per_device_train_batch_size) == ("out", 4)
    assert args.set_training(learning_rate=0.5, batch_size=2).learning_rate == 0.5
    assert args.set_lr_scheduler(name="cosine").lr_scheduler_type == "cosine"
    assert args.to_sanitized_dict()["train_batch_size"] == 2
    assert check_arguments(args) == []
    assert TrainingArguments(use_cpu=True).output_dir == "trainer_output"
    theirs, ours = transformers.TrainingArguments(use_cpu=True), TrainingArguments(use_cpu=True)
    assert all(getattr(ours, name) == getattr(theirs, name) for name in names_of(transformers.TrainingArguments))


def test_the_parser_of_transformers_takes_old_flags() -> None:
    flags = "--output_dir x --evaluation_strategy epoch --overwrite_output_dir --warmup_ratio 0.2 --no_cuda"
    parser = HfArgumentParser(TrainingArguments)
    with pytest.warns(HeadstartWarning) as caught:
        (args,) = parser.parse_args_into_dataclasses(
            [*flags.split(), "--fp16_opt_level=O2", "--headstart=fast", "--per-gpu-train-batch-size=3"],
            look_for_args_file=False,
        )
    assert {str(warning.message).split("=")[0] for warning in caught} == {
        "evaluation_strategy",
        "overwrite_output_dir",
        "warmup_ratio",
        "no_cuda",
        "fp16_opt_level",
        "per_gpu_train_batch_size",
    }
    assert all(warning.filename == __file__ for warning in caught)
    assert (args.eval_strategy, args.warmup_steps, args.use_cpu, args.headstart) == ("epoch", 0.2, True, "fast")
    assert args.per_device_train_batch_size == 3
    assert "evaluation_strategy" not in parser.format_help()
    assert "--logging_dir" in parser.format_help()


@pytest.mark.parametrize(
    ("field", "variable", "mode"),
    [
        (None, None, None),
        (None, "fast", "fast"),
        (None, "", None),
        ("fast", None, "fast"),
        ("", "fast", None),
    ],
)
def test_the_mode_comes_from_the_field_else_from_the_environment(
    field: str | None, variable: str | None, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("HEADSTART", variable)
    assert chosen_mode(TrainingArguments("out", use_cpu=True, headstart=field)) == mode
    if field is None:
        assert chosen_mode(transformers.TrainingArguments("out", use_cpu=True)) == mode


def test_an_unknown_mode_offers_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"(?s)headstart is 'fats'.*\"fast\""):
        TrainingArguments("out", use_cpu=True, headstart="fats")
    monkeypatch.setenv("HEADSTART", "1")
    with pytest.raises(RecipeError, match=r"(?s)environment variable HEADSTART is '1'.*\"fast\""):
        chosen_mode(transformers.TrainingArguments("out", use_cpu=True))


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_tensorboard_writes_to_the_logging_dir(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integrations = pytest.importorskip("transformers.integrations")
    pytest.importorskip("tensorboard")
    if before is not None:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", before)
    for folder, wanted in ((str(tmp_path / "curves"), str(tmp_path / "curves")), (None, before)):
        with tensorboard_folder(TrainingArguments("out", use_cpu=True, logging_dir=folder)):
            assert integrations.TensorBoardCallback().logging_dir == wanted
        assert os.environ.get("TENSORBOARD_LOGGING_DIR") == before


def test_the_module_offers_what_others_use() -> None:
    for name in arguments.__all__:
        assert getattr(arguments, name).__doc__
