"""The training loop of all recipes: one process or several, any precision, and checkpoints every few minutes.

All random numbers of a step follow from the seed, the step and the process. Those of a sample follow from the seed, the
epoch and the image. So a run that continues from a checkpoint draws the same numbers as one that was not interrupted,
for any number of evaluations and of workers.

    python RECIPE.py COMMAND --data ... --out runs/x                       # again with the same --out: goes on
    torchrun --nproc-per-node 8 RECIPE.py COMMAND --data ... --out runs/x  # --batch images in each process
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from schedules import Schedule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# -- the command line --------------------------------------------------------------------------------------------


def add_command(
    commands: Any, function: Callable[..., Any], *, paper: dict[str, Any], small: dict[str, Any], smoke: dict[str, Any]
) -> argparse.ArgumentParser:
    """A sub-command with the options that all trainings have, and three sets of values for them.

    Args:
        commands: what ``parser.add_subparsers()`` returned.
        function: runs the command; its name and docstring are the command's.
        paper: defaults. ``small`` replaces some of them, and ``smoke`` some of those.
    """
    name, text = function.__name__.replace("_", "-"), (function.__doc__ or "").strip()
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = command.add_argument
    add("--data", type=Path, help="images; see data.py for the layouts")
    add("--out", type=Path, default=Path("runs") / name, help="checkpoint, history, curves and final weights")
    add("--small", action="store_true", help="a narrow network on small images, for one CPU core")
    add("--smoke", action="store_true", help="a few steps on generated images")
    add("--epochs", type=float, help="length of the training")
    add("--steps", type=int, help="the same in steps")
    add("--minutes", type=float, help="the same in minutes without evaluations; schedules then follow the clock")
    add("--cpu-clock", action="store_true", help="count minutes of this process's CPU time: fair on a busy machine")
    add("--batch", type=int, default=64, help="images in each process")
    add("--lr", type=float)
    add("--weight-decay", type=float, default=0.0)
    add("--limit", type=int, help="use this many images only")
    add("--evaluate-every", type=float, default=1.0, help="epochs")
    add("--checkpoint-minutes", type=float, default=5.0)
    add("--log-every", type=int, default=50, help="steps")
    add("--amp", choices=("no", "bf16", "fp16"), default="no", help="mixed precision")
    add("--ema", type=float, help="keep a moving average of the weights with this decay, and save that")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=4, help="processes that read files")
    add("--threads", type=int, help="of PyTorch on the CPU")
    add("--device", help="default: cuda where there is one")
    command.set_defaults(function=function, presets={"small": small, "smoke": {"workers": 0, **small, **smoke}})
    command.set_defaults(**paper)
    return command


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Any:
    """Parse the options and run the command; options override the preset, which overrides the paper's values."""
    args = parser.parse_args(argv)
    command = parser._subparsers._group_actions[0].choices[args.command]  # type: ignore[union-attr,index,call-overload]
    for name in ("small", "smoke"):
        if getattr(args, name):
            command.set_defaults(**args.presets[name])
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    args.script = Path(sys.modules[args.function.__module__].__file__ or "").name
    lengths = ("epochs", "steps", "minutes")
    said = [name for name in lengths if any(word.split("=")[0] == f"--{name}" for word in args.argv)]
    for name in lengths if said else ():
        if name not in said:
            setattr(args, name, None)
    return args.function(args)


# -- one process of a training -----------------------------------------------------------------------------------


class Run:
    """A training process: its device, its rank among how many, and the options of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        self.minutes, self.steps = 0.0, 0  # of all trainings so far, those before a kill too
        self.progress = 0.0  # share of the current training that is over
        self.told = False  # that curves are not drawn
        self.rank, self.world = (int(os.environ.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda":  # of which PyTorch wants to know the number
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.out.mkdir(parents=True, exist_ok=True)
        self.seed("weights")

    @property
    def command(self) -> str:
        """The command as it was typed; absolute paths, which mean nothing elsewhere, are cut to their last part."""
        words = [Path(word).name if Path(word).is_absolute() else word for word in self.args.argv]
        return " ".join([self.args.script, *words])

    @property
    def is_main(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def seed(self, *what: object) -> None:
        """Make everything random follow from ``--seed`` and what is named."""
        seed_all(self.args.seed, *what)

    @contextlib.contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """Let the main process run first and the others after it: they find the files that it has written."""
        if self.world > 1 and not self.is_main:
            dist.barrier()
        yield
        if self.world > 1 and self.is_main:
            dist.barrier()

    def autocast(self) -> Any:
        """The precision that ``--amp`` names."""
        dtype = torch.float16 if self.args.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.args.amp != "no")

    def main_says(self, value: float) -> float:
        """Send the main process's value to every process, and return it."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def say(self, text: str) -> None:
        """Print in the main process."""
        if self.is_main:
            tqdm.write(text)

    def finish(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write ``result.json``: the command, its figures and cost, and the machine; and leave the other processes."""
        machine = {"torch": torch.__version__, "device": str(self.device), "processor": platform.machine()}
        machine |= {"threads": torch.get_num_threads(), "processes": self.world}
        if self.device.type == "cuda":
            machine["accelerator"] = torch.cuda.get_device_name(self.device)
        result: dict[str, Any] = {"command": self.command, "metrics": metrics}
        result |= {"minutes": round(self.minutes, 2), "steps": self.steps, "machine": machine}
        if self.is_main:
            write_text(self.out / "result.json", json.dumps(result, indent=2) + "\n")
            tqdm.write(json.dumps(metrics))
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
        return result


def seed_all(*what: object) -> None:
    """Seed PyTorch, NumPy and Python with a digest of some values."""
    seed = int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big") >> 1
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  other people's augmentations use this generator
    random.seed(seed)


def write_text(path: Path, text: str) -> None:
    """Write a file in full or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# -- weights to start from ----------------------------------------------------------------------------------------


def take_over(model: nn.Module, state: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Copy every tensor that has a counterpart of its name and shape; returns the parameters among them."""
    own = model.state_dict()
    names = {name for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    model.load_state_dict({**own, **{name: state[name] for name in names}})
    return [parameter for name, parameter in model.named_parameters() if name in names]


# -- order of the images -----------------------------------------------------------------------------------------


class SeededDataset(Dataset[Any]):
    """A dataset whose samples' randomness follows from the seed, the epoch and the index."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int | str, int]) -> Any:
        seed_all(self.seed, "sample", *key)
        return self.dataset[key[1]]


class BatchOrder:
    """Batches of ``(epoch, index)`` without end, from some step on; each epoch shuffled anew, shared by processes."""

    def __init__(self, length: int, batch: int, *, seed: int, rank: int = 0, world: int = 1, start: int = 0) -> None:
        self.steps_per_epoch = length // (batch * world)
        if not self.steps_per_epoch:
            raise SystemExit(f"{length} images make no batch of {batch} for each of {world} processes; lower --batch.")
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.start, self.steps_per_epoch)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)[self.rank :: self.world]
            for step in range(first, self.steps_per_epoch):
                yield [(epoch, int(i)) for i in order[step * self.batch : (step + 1) * self.batch]]
            epoch, first = epoch + 1, 0


# -- the loop ----------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    task: nn.Module,
    dataset: Any,
    optimizer: torch.optim.Optimizer,
    schedules: Schedule | Sequence[Schedule],
    *,
    prepare: Callable[[Any], tuple[Any, ...]],
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    clip: float | None = None,
    stage: str = "",
    share: float = 1.0,
    after: int = 0,
) -> nn.Module:
    """Train until the epochs, steps or minutes are over; go on from ``checkpoint.pt`` where there is one.

    Args:
        task: ``task(*inputs)`` is a dictionary of 0-dimensional tensors: ``"loss"``, which is minimized, and others
            to be recorded. The module holds the trained parameters, and no others.
        dataset: samples by index; collated, they are what ``prepare`` takes.
        schedules: one for all parameter groups, or one for each.
        prepare: a batch to the inputs of ``task``, on the device; without gradients.
        evaluate: from the task (its moving average with ``--ema``) to figures for the history; called by all processes.
        clip: largest norm of the gradients; of groups with ``"clip": False`` they are left alone.
        stage: name of the folder for checkpoint and history, for trainings in several stages.
        share: of the whole length that this stage has.
        after: steps of the stages before, after which the order of the images and all that is random goes on.

    Returns:
        the task, or its moving average; the same values in all processes.
    """
    args, out = run.args, run.out / stage
    out.mkdir(parents=True, exist_ok=True)
    task.to(run.device, memory_format=torch.channels_last)
    schedules = [schedules] * len(optimizer.param_groups) if callable(schedules) else list(schedules)
    rates = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(run.device.type, enabled=args.amp == "fp16")
    average = MovingAverage(task, args.ema) if args.ema else None
    order = BatchOrder(len(dataset), args.batch, seed=args.seed, rank=run.rank, world=run.world)
    total = share * (args.steps or (args.epochs or 0) * order.steps_per_epoch)
    budget = share * args.minutes if args.minutes else None

    step, minutes, history = 0, 0.0, History(out / "history.jsonl", run.is_main)
    settings = {"batch": args.batch, "seed": args.seed, "images": len(dataset), "processes": run.world}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=run.device, weights_only=True)
        if saved["settings"] != settings:
            raise SystemExit(f"{checkpoint} was made with {saved['settings']}, not {settings}; choose another --out.")
        task.load_state_dict(saved["task"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        if average is not None:
            average.load_state_dict(saved["average"])
        step, minutes = saved["step"], saved["minutes"]
        run.say(f"going on from step {step} of {out}")
    history.forget_after(step)

    parallel = task
    if run.world > 1:
        devices = [run.device] if run.device.type == "cuda" else None
        parallel = DistributedDataParallel(task, device_ids=devices)
    order.start = after + step
    workers = 0 if getattr(dataset, "held", None) else args.workers  # forks cannot read from a GPU
    loader = DataLoader(
        SeededDataset(dataset, args.seed),
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=run.device.type == "cuda",
        multiprocessing_context=start_method(workers),
    )

    def save() -> None:
        if run.is_main:
            state = {"task": task.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            state |= {"average": None if average is None else average.state_dict()}
            state |= {"step": step, "minutes": minutes, "settings": settings}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    def share_buffers() -> None:
        # batch norms have seen other images in each process
        for module in (task, average) if run.world > 1 else ():
            for buffer in () if module is None else module.buffers():
                dist.broadcast(buffer, 0)

    clipped = [p for group in optimizer.param_groups if group.get("clip", True) for p in group["params"]]
    task.train()
    sums: dict[str, Tensor] = {}
    now = time.process_time if args.cpu_clock else time.monotonic
    logged, saved_at, clock = step, minutes, now()
    bar = tqdm(total=100, unit="%", desc=stage or run.out.name, disable=not run.is_main, mininterval=2, leave=False)
    batches = iter(loader)
    while True:
        progress = run.main_says(minutes / budget) if budget else step / max(1, total)
        bar.update(min(100, round(100 * progress, 1)) - bar.n)
        evaluation_due = step > logged and step % max(1, round(args.evaluate_every * order.steps_per_epoch)) == 0
        if step > logged and (progress >= 1 or evaluation_due or step % args.log_every == 0):
            row = {"step": step, "epoch": round(step / order.steps_per_epoch, 3), "minutes": round(minutes, 3)}
            row["lr"] = float(optimizer.param_groups[0]["lr"])
            row |= {name: float(value) / (step - logged) for name, value in sums.items()}
            if not np.isfinite(row["loss"]):
                raise SystemExit(f"the loss is {row['loss']} at step {step}; lower --lr, or use --amp no.")
            if evaluate is not None and (progress >= 1 or evaluation_due):
                share_buffers()
                with torch.no_grad():
                    row |= evaluate(task if average is None else average.module)
                task.train()
            history.add(row)
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k not in ("step", "epoch", "minutes")})
            logged, sums, clock = step, {}, now()
        if progress >= 1:
            break
        if minutes - saved_at >= args.checkpoint_minutes:
            save()
            saved_at = minutes

        batch = next(batches)
        for group, rate, schedule in zip(optimizer.param_groups, rates, schedules, strict=True):
            group["lr"] = rate * schedule(progress)
        run.seed("step", after + step, run.rank)
        run.progress = progress
        with torch.no_grad():
            inputs = prepare(batch)
        with run.autocast():
            losses = parallel(*inputs)
        optimizer.zero_grad()
        scaler.scale(losses["loss"]).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(clipped, clip)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update(task)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float()
        step += 1
        spent = now() - clock
        minutes, clock = minutes + spent / 60, clock + spent
    bar.close()
    share_buffers()
    save()
    if run.is_main and not plot(out / "history.jsonl", out / "curves.png") and not run.told:
        run.told = True
        run.say("curves.png is not written: matplotlib is missing; pip install matplotlib, or cdzoo's extra examples")
    run.minutes, run.steps = run.minutes + minutes, run.steps + step
    return (task if average is None else average.module).eval()


def growing(values: Sequence[int], shares: Sequence[float], progress: float) -> int:
    """Select a value, such as the side of a crop, by the share of the training that is over.

    Args:
        values: in the order in which they serve.
        shares: of the training, one for each value; they need not sum to 1.
        progress: 0 to 1.

    Raises:
        SystemExit: there are not as many shares as values.
    """
    if len(values) != len(shares):
        raise SystemExit(f"{len(values)} sides have {len(shares)} shares; give one share for each side")
    ends = np.cumsum(shares) / sum(shares)
    return values[min(int(np.searchsorted(ends, progress, side="right")), len(values) - 1)]


def start_method(workers: int) -> str | None:
    """The start method of a loader's workers: others than ``fork`` would have to pickle every transform."""
    return "fork" if workers and "fork" in get_all_start_methods() else None


class MovingAverage(nn.Module):
    """A copy of a module whose parameters and buffers are moving averages; it forgets random initial values quickly.

    PyTorch's ``AveragedModel`` keeps its count in a tensor, so that each step would wait for the GPU.

    Args:
        task: to copy.
        decay: weight of the past, once there are ``9 / (1 - decay)`` steps of it.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay, self.count = copy.deepcopy(task), decay, 0

    @torch.no_grad()
    def update(self, task: nn.Module) -> None:
        """One step after ``task``; values that are not floating-point are copied."""
        share = max(1 - self.decay, 9 / (10 + self.count)) if self.count else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(task), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floating], [value for _, value in floating], share)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
        self.count += 1

    def get_extra_state(self) -> int:
        """The number of steps, for checkpoints."""
        return self.count

    def set_extra_state(self, state: int) -> None:
        """Continue from the number of steps of a checkpoint."""
        self.count = state


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


class History:
    """A file of JSON lines that a run that goes on continues where its checkpoint stands."""

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active = path, active

    def forget_after(self, step: int) -> None:
        """Drop what was recorded after a step: it will come again."""
        if self.active and self.path.exists():
            rows = [r for r in self.path.read_text(encoding="utf-8").splitlines() if json.loads(r)["step"] <= step]
            write_text(self.path, "".join(f"{row}\n" for row in rows))

    def add(self, row: dict[str, Any]) -> None:
        """Add a line."""
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def read_history(out: Path) -> list[dict[str, float]]:
    """The rows of all stages of a run."""
    return [json.loads(r) for p in sorted(out.rglob("history.jsonl")) for r in p.read_text().splitlines()]


def plot(history: Path, picture: Path) -> bool:
    """Draw curves of everything recorded, and return false where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    names = sorted({name for row in rows for name in row} - {"step", "epoch", "minutes"})
    if not names:
        return True
    columns = min(3, len(names))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(names) // columns)), layout="constrained")
    for axes, name in zip(figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    figure.savefig(picture, dpi=80)
    return True
