import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, T5Config, get_scheduler

from headstart.errors import RecipeError
from headstart.models.layers import layer_factors
from headstart.recipe_sections import OptimSection
from headstart.training.optim import build_optimizer, default_layer_decay, default_learning_rate, parameter_groups
from headstart.training.schedules import build_schedule, learning_rate_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 3), (1, 0), (5, 5), (7, 1)])
def test_schedules_are_those_of_transformers(schedule: str, total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        factor = learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
        assert factor == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "num_warmup_steps"), [(0, 0), (3, 3), ("30%", 3), ("4%", 1)])
def test_scheduler_is_that_of_transformers_when_built(schedule: str, warmup: int | str, num_warmup_steps: int) -> None:
    own, other = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    name = "constant_with_warmup" if schedule == "constant" else schedule
    expected = get_scheduler(name, other, num_warmup_steps=num_warmup_steps, num_training_steps=10)
    scheduler = build_schedule(own, total_steps=10, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    for step in range(10):
        if step == 5:  # its state is numbers: another one goes on from them
            state = scheduler.state_dict()
            scheduler = build_schedule(own, total_steps=10, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
            scheduler.load_state_dict(state)
        assert scheduler.get_last_lr() == pytest.approx(expected.get_last_lr(), abs=1e-12)
        for optimizer in (own, other):
            optimizer.step()
        scheduler.step()
        expected.step()


def test_schedule_says_what_it_cannot_count() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    for warmup in ("2 epochs", "5 minutes", "soon", -1):
        with pytest.raises(RecipeError, match="warmup"):
            build_schedule(optimizer, total_steps=10, warmup=warmup)
    with pytest.raises(RecipeError, match=r'schedule: "cosin".*(?s:.)*cosine'):
        build_schedule(optimizer, total_steps=10, schedule="cosin")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="total_steps"):
        build_schedule(optimizer, total_steps=0)


def test_biases_and_norms_are_not_decayed() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "embed": nn.Embedding(5, 3)})
    groups = parameter_groups(model, 0.1)
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {"linear.weight", "embed.weight"}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1]


def test_adamw_gets_every_number() -> None:
    section = OptimSection(learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=1e-3, weight_decay=0.2)
    optimizer = build_optimizer(nn.Linear(2, 2), section)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.7, 0.8), 1e-3, 0.2)


def test_sgd_gets_its_momentum() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimSection(name="sgd", momentum=0.5))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (BertConfig(hidden_size=32), 3e-4),
        (BertConfig(hidden_size=256), 3e-4),
        (BertConfig(hidden_size=384), 2e-4),
        (T5Config(d_model=512), 1.1e-4),
        (GPT2Config(n_embd=768), 5e-5),
        (BertConfig(hidden_size=1024), 2.8e-5),
        (None, 5e-5),
    ],
)
def test_the_default_learning_rate_follows_from_the_width(config: object, rate: float) -> None:
    model = nn.Linear(2, 2)
    if config is not None:
        model.config = config  # type: ignore[assignment]
    assert [default_learning_rate(model, rows) for rows in (32, 256)] == [rate, rate]
    assert build_optimizer(model).param_groups[0]["lr"] == pytest.approx(rate / 2, rel=0.03)
    assert build_optimizer(model, learning_rate=0.5).param_groups[0]["lr"] == 0.5


def test_the_default_learning_rate_is_lower_for_fewer_rows() -> None:
    rates = [default_learning_rate(nn.Linear(2, 2), rows) for rows in (1, 8, 16, 30.5, 32)]
    assert rates == [8.8e-6, 2.5e-5, 3.5e-5, 4.9e-5, 5e-5]


@pytest.mark.parametrize(("num_layers", "decay"), [(1, 0.707), (6, 0.906), (12, 0.948), (24, 0.973)])
def test_by_default_embeddings_learn_at_half_the_rate_of_the_head(num_layers: int, decay: float) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=num_layers))
    assert default_layer_decay(model) == decay
    assert min(layer_factors(model, decay).values()) == pytest.approx(0.5, abs=0.01)
    assert default_layer_decay(model, "lion") is None and default_layer_decay(nn.Linear(2, 2)) is None


def test_numbers_that_are_unknown_or_out_of_range_are_said_by_their_names() -> None:
    for wrong, words in (({"lr": 0.1}, r"optim\.lr: no such key"), ({"name": "adam"}, 'Did you mean "adamw"')):
        with pytest.raises(RecipeError, match=words):
            build_optimizer(nn.Linear(2, 2), **wrong)
