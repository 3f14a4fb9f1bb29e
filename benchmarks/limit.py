"""How near a training step comes to what the machine can do, and where its time goes, before and after.

    python benchmarks/limit.py
    python benchmarks/limit.py --model-shape bert-base --batch-size 8

Two limits are measured first: the rate of matrix products (torch.mm over the model's own shapes and over matrices of
2048, in bfloat16 and float32, the best of several tries), and the rate at which memory is copied. Then steps of made-up
rows as long as MRPC's pairs: "before" is a plain PyTorch loop under bfloat16 autocast with the fused AdamW and rows in
random order, "after" is headstart's fast path without the part that leaves arithmetic out (first_token). They
take turns in one process.

The arithmetic of a step is that of its matrix products over tokens that are not padding: 2 x rows x columns x inner
size for each linear layer and for the two products of attention, once forward and twice backward. Its share is that
arithmetic over the step's time, beside the highest bfloat16 rate that was measured. "At the products' own rates" is how
long the linear layers would take if each ran as fast as torch.mm did on its shape. The optimizer's step is bound by
memory: the bytes that it has to read and write (gradient, both moments, weight; a bfloat16 copy) over its time, beside
the rate of copying.

Where the time goes is read from torch.profiler in steps of their own; what no operation accounts for is Python and the
rest.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from measuring import alternate, draw_table, fill_by_form, make_parser, spread, summarise, tell

if TYPE_CHECKING:
    import numpy as np
    import torch
    from training_steps import Rows, Training

GROUPS = (
    "matrix products",
    "attention",
    "norms, activations, dropout",
    "casts and copies",
    "embeddings",
    "optimizer and clipping",
    "Python and the rest",
)
# The first of these words that an operation's name, or that of one it runs in, has says its group.
_BY_ANCESTOR = {
    "optimizer and clipping": ("Optimizer.", "clip"),
    "attention": ("_Attention", "scaled_dot_product", "flash_attention", "kernel attention"),
    "embeddings": ("_Lookup", "embedding", "Embedding"),
}
_BY_NAME = {
    "attention": ("bmm", "softmax", "matmul"),
    "matrix products": ("::mm", "addmm", "linear", "mkldnn::"),
    "optimizer and clipping": ("_fused_adam", "_foreach", "linalg_vector_norm"),
    "Python and the rest": ("_WholeLayer",),  # what its products and kernels leave
    "casts and copies": ("kernel packing", "copy_", "_to_copy", "::to", "contiguous", "clone", "::cat"),
}
BEFORE, AFTER = "before", "after"


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model-shape", choices=["embedded", "bert-base", "tiny"])
    parser.add_argument("--batch-size", type=int, nargs="+", help="default 8 32")
    parser.add_argument("--length", type=int, help="tokens of each row; default: as long as MRPC's pairs")
    parser.add_argument("--batches", type=int, help="timed in a turn (default 24)")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--tries", type=int, help="of each matrix product and copy (default 20)")
    arguments = parser.parse_args()
    fill_by_form(
        arguments,
        rounds=(5, 1, 1),
        batches=(24, 3, 2),
        tries=(20, 5, 1),
        batch_size=([8, 32], [32], [4]),
        model_shape=("embedded", "embedded", "tiny"),
    )
    return arguments


def fastest(work: Callable[[], object], tries: int) -> float:
    """Give the seconds of the fastest of several tries, after one that is not timed."""
    work()
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def copy_rate(tries: int, num_bytes: int) -> float:
    """Measure how many bytes a second are moved when memory is copied: those read and those written."""
    import torch

    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return 2 * num_bytes / fastest(lambda: target.copy_(source), tries)


def product_rates(shapes: Sequence[tuple[int, int, int]], tries: int) -> dict[str, dict[tuple[int, int, int], float]]:
    """Measure torch.mm in FLOP/s for each shape (rows, inner, columns), by precision."""
    import torch

    rates: dict[str, dict[tuple[int, int, int], float]] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        rates[name] = {}
        for rows, inner, columns in shapes:
            left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
            seconds = fastest(lambda left=left, right=right: torch.mm(left, right), tries)  # type: ignore[misc]
            rates[name][rows, inner, columns] = 2 * rows * inner * columns / seconds
    return rates


def linear_layers(model: torch.nn.Module) -> list[tuple[int, int, bool]]:
    """Give inputs and outputs of each linear layer, and whether it sees every token or only one of each row."""
    import torch

    seen: list[tuple[int, int, bool]] = []

    def note(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((module.in_features, module.out_features, inputs[0].ndim > 2))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        model(input_ids=torch.full((2, 4), 2))
    for hook in hooks:
        hook.remove()
    return seen


def arithmetic(model: Any, layers: Sequence[tuple[int, int, bool]], lengths: np.ndarray) -> float:
    """Count the FLOP of a step's matrix products, forward and backward, over rows of these lengths."""
    num_tokens, num_rows = int(lengths.sum()), len(lengths)
    linear = sum(2 * inputs * outputs * (num_tokens if every else num_rows) for inputs, outputs, every in layers)
    attention = 4 * model.config.hidden_size * model.config.num_hidden_layers * int((lengths.astype(int) ** 2).sum())
    return 3.0 * (linear + attention)


def shapes_of(layers: Sequence[tuple[int, int, bool]], num_tokens: int) -> dict[tuple[int, int, int], int]:
    """Give the products (rows, inner, columns) of a step's linear layers, and how often each is made."""
    shapes: dict[tuple[int, int, int], int] = {}
    for inputs, outputs, every in layers:
        if every:
            forward, to_input = (num_tokens, inputs, outputs), (num_tokens, outputs, inputs)
            for shape in (forward, to_input, (outputs, num_tokens, inputs)):
                shapes[shape] = shapes.get(shape, 0) + 1
    return shapes


def optimizer_bytes(training: Training) -> int:
    """Count what an update has to read and write, of the parameters whose gradient is not sparse.

    A number has a gradient, two moments and a weight; all but the gradient are written, too, and so is a bfloat16 copy.
    """
    handle = training.path.handle if training.path is not None else None
    copies = handle.copies.tensors if handle is not None and handle.copies is not None else {}
    total = 0
    for parameter in training.model.parameters():
        if parameter.grad is not None and not parameter.grad.is_sparse:
            own = parameter.grad.element_size() + 6 * 4 + (2 if parameter in copies else 0)
            total += own * parameter.numel()
    return total


def timed_turn(training: Training, batches: Sequence[np.ndarray]) -> dict[str, float]:
    """Make the steps of one turn; give seconds in all, and seconds and bytes of the optimizer."""
    in_optimizer, moved = 0.0, 0
    started = time.perf_counter()
    for rows in batches:
        training.compute_gradients(rows)
        if not moved:
            moved = optimizer_bytes(training)
        before = time.perf_counter()
        training.update()
        in_optimizer += time.perf_counter() - before
        training.optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "optimizer_seconds": in_optimizer, "optimizer_bytes": moved * len(batches)}


def group_of(event: Any) -> str:
    """Say which group an operation's own time belongs to."""
    name, above = event.name, event
    while above is not None:
        for group, words in _BY_ANCESTOR.items():
            if any(word in above.name for word in words):
                return group
        above = above.cpu_parent
    for group, words in _BY_NAME.items():
        if any(word in name for word in words):
            return group
    return "norms, activations, dropout"


@contextlib.contextmanager
def kernels_by_name() -> Iterator[None]:
    """Let the profiler see headstart's own kernels, which are no operations of PyTorch's."""
    import torch

    from headstart.models.kernels.launch import Kernel

    call = Kernel.__call__

    def recorded(self: Kernel, *given: int) -> None:
        with torch.profiler.record_function(f"kernel {self.name}"):
            call(self, *given)

    Kernel.__call__ = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        Kernel.__call__ = call  # type: ignore[method-assign]


def profile(training: Training, batches: Sequence[np.ndarray]) -> dict[str, float]:
    """Give the seconds of each group in these steps, in the profiler's time."""
    import torch

    clip = getattr(training.optimizer, "clip", None)
    if clip is not None:  # headstart's own measuring of gradients is no operation of PyTorch's

        def recorded(*given: Any, **more: Any) -> Any:
            with torch.profiler.record_function("clip"):
                return clip(*given, **more)

        training.optimizer.clip = recorded  # type: ignore[attr-defined]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with kernels_by_name(), torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        for rows in batches:
            training.step(rows)
        whole = time.perf_counter() - started
    seconds = dict.fromkeys(GROUPS, 0.0)
    for event in profiler.events():
        seconds[group_of(event)] += event.self_cpu_time_total / 1e6
    seconds[GROUPS[-1]] = 0.0
    seconds[GROUPS[-1]] = max(0.0, whole - sum(seconds.values()))
    return seconds


def measure_steps(arguments: argparse.Namespace, model: Any, rows: Rows, batch_size: int) -> dict[str, Any]:
    """Time and profile steps before and after."""
    from training_steps import PLAIN, fast_setting, open_training, seconds_of

    from headstart.recipe_sections import FAST_PARTS

    settings = {BEFORE: PLAIN, AFTER: fast_setting(set(FAST_PARTS) - {"first_token", "padding_free"})}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    groups: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for number, name in alternate(list(settings), arguments.rounds):
        batches = rows.batches(batch_size, settings[name])
        with open_training(model, rows, settings[name]) as training:
            seconds_of(training, sorted(batches, key=lambda batch: -rows.lengths[batch].max())[:3])
            turns[name].append(timed_turn(training, batches))
            groups[name].append(profile(training, batches[:10]))
        milliseconds = 1000 * turns[name][-1]["seconds"] / len(batches)
        print(f"round {number + 1}: batch {batch_size}: {name:6} {milliseconds:8.1f} ms a step", flush=True)
    return {"turns": turns, "groups": groups, "num_steps": len(batches)}


def describe_steps(
    measured: Mapping[str, Any], flop: float, best_rate: float, copy: float, num_rows: int
) -> dict[str, dict[str, Any]]:
    """Turn seconds into milliseconds a step, shares of the limits, and milliseconds of each group."""
    found = {}
    for name, turns in measured["turns"].items():
        steps = measured["num_steps"]
        seconds = [turn["seconds"] for turn in turns]
        rates = [turn["optimizer_bytes"] / turn["optimizer_seconds"] / 1e9 for turn in turns]
        profiled = measured["groups"][name]
        shares = {group: statistics.median(one[group] / sum(one.values()) for one in profiled) for group in GROUPS}
        median = statistics.median(seconds) / steps
        found[name] = {
            "step_ms": summarise(1000 * one / steps for one in seconds),
            "samples_per_second": summarise(num_rows / one for one in seconds),
            "share_of_products": summarise(100 * flop / one / best_rate for one in seconds),
            "optimizer_ms": summarise(1000 * turn["optimizer_seconds"] / steps for turn in turns),
            "optimizer_gb_per_second": summarise(rates),
            "share_of_copying": summarise(100e9 * rate / copy for rate in rates),
            "groups_ms": {group: 1000 * median * share for group, share in shares.items()},
        }
    return found


def tabulate(found: Mapping[str, Mapping[str, Any]], products_ms: float) -> str:
    """Give the table of one batch size."""
    lines = [
        ("a step, ms", "step_ms", 1),
        ("samples/s", "samples_per_second", 1),
        ("arithmetic, % of the bf16 rate", "share_of_products", 1),
        ("optimizer's step, ms", "optimizer_ms", 2),
        ("optimizer, GB/s", "optimizer_gb_per_second", 1),
        ("optimizer, % of the rate of copying", "share_of_copying", 1),
    ]
    names = list(found)
    rows = [[title, *(spread(found[name][key], digits) for name in names)] for title, key, digits in lines]
    first = draw_table(["", *names], rows)
    parts = []
    for group in GROUPS:
        numbers = [found[name]["groups_ms"][group] for name in names]
        wholes = [found[name]["step_ms"]["median"] for name in names]
        parts.append([group, *(f"{n:.1f} ({n / whole:.0%})" for n, whole in zip(numbers, wholes, strict=True))])
    second = draw_table(["where the time goes, ms a step", *names], parts)
    return f"{first}\n\n{second}\n\nThe linear layers at the products' own rates: {products_ms:.1f} ms a step."


def main() -> None:
    arguments = parse_arguments()
    from training_steps import make_model, make_rows

    from headstart.training.device import choose_device

    choose_device("cpu", "bf16").apply_threads()
    model = make_model(arguments.model_shape)
    layers = linear_layers(model)
    copied = copy_rate(arguments.tries, 2**24 if arguments.tiny else 2**28)
    tables, told = [], [f"memory is copied at {copied / 1e9:.1f} GB/s (read and written)"]
    for batch_size in arguments.batch_size:
        rows = make_rows(arguments.batches * batch_size, model.config.vocab_size, length=arguments.length)
        shapes = shapes_of(layers, round(batch_size * float(rows.lengths.mean())))
        square = (256,) * 3 if arguments.tiny else (2048,) * 3
        rates = product_rates([*shapes, square], arguments.tries)
        best = max(rates["bf16"].values())
        flop = arithmetic(model, layers, rows.lengths)
        measured = measure_steps(arguments, model, rows, batch_size)
        found = describe_steps(measured, flop, best, copied, len(rows.lengths))
        own = 1000 * sum(count * 2 * a * b * c / rates["bf16"][a, b, c] for (a, b, c), count in shapes.items())
        by_shape = [
            {"shape": list(shape), **{f"{name}_gflop_per_second": rates[name][shape] / 1e9 for name in rates}}
            for shape in [*shapes, square]
        ]
        tables.append(
            {
                "batch_size": batch_size,
                "gflop_in_a_step": flop / arguments.batches / 1e9,
                "products_ms": own,
                "bf16_gflop_per_second": best / 1e9,
                "products": by_shape,
                **found,
            }
        )
        lines = [
            [
                " x ".join(map(str, one["shape"])),
                f"{one['bf16_gflop_per_second']:,.0f}",
                f"{one['fp32_gflop_per_second']:,.0f}",
            ]
            for one in by_shape
        ]
        products = draw_table(["matrix product", "bf16, GFLOP/s", "fp32, GFLOP/s"], lines)
        size = f"{batch_size} rows a step, {flop / arguments.batches / 1e9:.1f} GFLOP"
        told.append(f"{size}\n\n{products}\n\n{tabulate(found, own)}")
    settings = {"model": arguments.model_shape, "tokens": arguments.length or "like MRPC's", "rounds": arguments.rounds}
    result = {"copy_gb_per_second": copied / 1e9, "tables": tables}
    tell(arguments, __file__, settings, result, "\n\n".join(told))


if __name__ == "__main__":
    main()
