"""Train a classifier on shards of .cdz streams or JPEG files, in one process or in many.

    python examples/train_shards.py --shards 'train-{000..031}.tar' --val 'val-{000..003}.tar' --classes 10 ...
    torchrun --nproc-per-node 8 --max-restarts 3 examples/train_shards.py --model icat_small --parallel fsdp2 ...

Every sample is used once per epoch. A step's loss is the mean over the samples of all ranks; a rank that has none left
takes part without any. What cannot be read is reported and left out. A run that was killed goes on from its last
checkpoint when torchrun or the user starts it again, and ends with the weights that it would have had.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import cdzoo
from cdzoo.codecs import Codec, encode_jpeg
from cdzoo.data import CoefficientShards, StreamShards
from cdzoo.transforms import LatentTransform

WHOLE = states.StateDictOptions(full_state_dict=True, cpu_offload=True)  # of networks in parts too: on rank 0, in one


class Named:
    """Shards whose labels are pairs of class and name, so that it can be said which samples were used."""

    def _read(self, shards: Iterable[str]) -> Iterator[Any]:
        return (raw._replace(label=(raw.label, raw.name)) for raw in super()._read(shards))


class NamedStreams(Named, StreamShards):
    """``.cdz`` streams."""


class NamedCoefficients(Named, CoefficientShards):
    """JPEG files."""


def report(error: Exception) -> None:
    """Say what is left out."""
    print(f"left out: {error}", file=sys.stderr, flush=True)


def open_shards(
    paths: Sequence[str], codec: Codec | None, rank: int, world: int, workers: int, **options: Any
) -> Callable[[int], Iterable[Any]]:
    """This rank's share of the shards, from the number of an epoch to its batches."""
    build = partial(NamedStreams, codec=codec) if codec else partial(NamedCoefficients, gray="ycbcr")
    found = build(paths, num_replicas=1, rank=0).shards
    if rank >= len(found):  # more ranks than shards
        return lambda epoch: ()
    shards = build(found, num_replicas=min(world, len(found)), rank=rank, on_error=report, **options)

    def batches(epoch: int) -> Iterable[Any]:
        shards.set_epoch(epoch)
        return DataLoader(shards, batch_size=None, collate_fn=tuple, num_workers=workers)  # they are batches already

    return batches


def in_step(batches: Iterable[Any], empty: Any) -> Iterator[tuple[Any, Tensor, Sequence[str], int]]:
    """Input, labels and names of this rank, and how many samples all ranks have, until that is 0.

    A rank that has run out gets ``empty``, an input without labels, because the others wait for it in every step.
    """
    batches = iter(batches)
    while True:
        inputs, (labels, names) = next(batches, (empty, (torch.zeros(0, dtype=torch.int64), ())))
        samples = int(summed(torch.tensor(len(labels))))
        if samples == 0:
            return
        yield inputs, labels, names, samples


def summed(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def build_model(args: argparse.Namespace, codec: Codec | None) -> Any:
    """The network to train: a new one, or, on the streams of an icat_small, its own classifier."""
    if codec is not None and codec.name == args.model:
        model: Any = copy.deepcopy(codec).train()
        model.reset_classifier(args.classes)
        return model
    options: dict[str, Any] = {"num_classes": args.classes, "width": args.width}
    if codec is None:
        return cdzoo.get_model(args.model, **options)
    options |= {} if args.model == "icat_small" else {"latent_stride": codec.stride}
    model = cdzoo.get_model(args.model, in_channels=codec.latent_channels, **options)
    model.transforms = LatentTransform(size=args.latent_size and (args.latent_size, args.latent_size))
    return model


def parallelise(model: Any, how: str, device: torch.device) -> nn.Module:
    """The network as it is called in training."""
    if not dist.is_initialized():
        return model
    if how == "ddp":
        return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Any], empty: Any, device: torch.device) -> dict[str, float]:
    """Top-1 accuracy in percent, and of how many samples."""
    network.eval()
    right, total = torch.tensor(0), 0
    for inputs, labels, _, samples in in_step(batches, empty):
        right += (network(inputs.to(device))[: len(labels)].argmax(1).cpu() == labels).sum()
        total += samples
    return {"top1": 100 * int(summed(right)) / max(1, total), "samples": total}


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    """Train, with an evaluation after each epoch, and save."""
    codec = None
    if not args.model.startswith("jpeg"):
        shipped = args.codec in cdzoo.list_codecs(pretrained=True)
        codec = cdzoo.get_codec(args.codec, weights="DEFAULT") if shipped else cdzoo.from_pretrained(args.codec)
    torch.manual_seed(args.seed)
    model = build_model(args, codec).to(device)
    prepare = getattr(model, "transforms", None)
    options = {"workers": args.workers, "batch_size": args.batch, "transform": prepare}
    shards = open_shards(args.shards, codec, rank, world, shuffle=True, seed=args.seed, **options)
    val = open_shards(args.val, codec, rank, world, **options)
    gray = torch.full((1, 3, 32, 32), 0.5)
    empty = codec.encode(gray) if codec else encode_jpeg(gray)
    empty = prepare(empty) if prepare else empty

    # the analysis and the synthesis of an icat_small have no say in the classes of latents: they stay as they are
    model.eval()(empty.to(device)).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None).grad = None
    network = parallelise(model, args.parallel, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    network.eval()(empty.to(device)).sum().backward()  # DDP sorts its buckets after the first pass: this one, always
    optimizer.zero_grad()

    checkpoint, free = args.out / "checkpoint.pt", ("val", "out", "checkpoint_every", "log_samples")
    settings = {"ranks": world, **{name: value for name, value in vars(args).items() if name not in free}}
    state = {"settings": settings, "epoch": 0, "step": 0, "loss": 0.0, "samples": 0, "history": []}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(f"{checkpoint} was made with {state['settings']}, not {settings}; choose another --out.")
        weights, moments = state.pop("weights"), state.pop("optimizer")
        states.set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=WHOLE)
        schedule.load_state_dict(state.pop("schedule"))

    def save(**progress: Any) -> None:
        state.update(progress)
        weights, moments = states.get_state_dict(model, optimizer, options=WHOLE)
        if rank == 0:
            found = {**state, "weights": weights, "optimizer": moments, "schedule": schedule.state_dict()}
            torch.save(found, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    def log(**record: Any) -> None:
        if args.log_samples:
            with open(args.out / f"samples-{rank}.jsonl", "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(record))  # not on a line that a kill has cut off

    args.out.mkdir(parents=True, exist_ok=True)
    for epoch in range(state["epoch"], args.epochs):
        batches = islice(shards(epoch), state["step"], None)  # those that were not used before
        for step, (inputs, labels, names, samples) in enumerate(in_step(batches, empty), state["step"]):
            torch.manual_seed(random.Random(f"{args.seed} {epoch} {step} {rank}").getrandbits(63))
            network.train(len(labels) > 1)  # batch norms can learn nothing from fewer
            logits = network(inputs.to(device))[: len(labels)]
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum") / samples
            (loss * world).backward()  # DDP and FSDP average gradients over ranks
            state["norm"] = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
            optimizer.zero_grad()
            state["loss"] += samples * float(summed(loss.detach()))
            state["samples"] += samples
            log(epoch=epoch, step=step, names=names)
            if (step + 1) % args.checkpoint_every == 0:
                save(step=step + 1)
        if not state["samples"]:
            raise SystemExit(f"{args.shards}: no sample could be read.")
        schedule.step()
        row = {"epoch": epoch, "samples": state["samples"], "loss": state["loss"] / state["samples"]}
        row["norm"] = state["norm"]  # of the last step's gradients
        row["val"] = evaluate(network, val(0), empty, device)
        save(epoch=epoch + 1, step=0, loss=0.0, samples=0, history=[*state["history"], row])
        if rank == 0:
            print(json.dumps(row), flush=True)

    weights = states.get_model_state_dict(model, options=WHOLE)
    if rank == 0:
        trained = build_model(args, codec)
        trained.load_state_dict(weights)
        owner = None if codec is None or codec.name == args.model else codec
        cdzoo.save_pretrained(trained, args.out / "final", codec=owner, meta={"history": state["history"]})


def join(backend: str) -> None:
    """Meet the other ranks; after a restart elsewhere than before, where the addresses of the killed ones still lie."""
    env, store = os.environ, None
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        agent = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(f"start {env['TORCHELASTIC_RESTART_COUNT']}", agent)
    dist.init_process_group(backend, store=store, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]))


def main(argv: Sequence[str] | None = None) -> None:
    """One process of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", nargs="+", required=True, help=".tar files, globs, brace lists, folders")
    add("--val", nargs="+", required=True, help="likewise, to evaluate on")
    add("--classes", type=int, required=True, help="how many there are")
    add("--model", choices=("cresnet39", "fa_cresnet39", "icat_small", "jpeg_resnet18"), default="fa_cresnet39")
    add("--codec", default="bmshj2018_hyperprior", help="of .cdz streams: one that ships, or a folder")
    add("--width", type=float, default=1.0, help="multiplies the network's channels")
    add("--latent-size", type=int, help="rows and columns that latents are brought to; otherwise they stay as they are")
    add("--parallel", choices=("ddp", "fsdp2"), default="ddp")
    add("--out", type=Path, default=Path("runs/shards"), help="checkpoint and final weights; every rank reads them")
    add("--epochs", type=int, default=30)
    add("--batch", type=int, default=32, help="samples on each rank, at most")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=2, help="processes that read and decode, for each rank")
    add("--checkpoint-every", type=int, default=500, metavar="STEPS")
    add("--log-samples", action="store_true", help="write names of the samples used to OUT/samples-RANK.jsonl")
    args = parser.parse_args(argv)
    if args.parallel == "fsdp2" and args.model != "icat_small":
        parser.error(f"--parallel fsdp2 shards the blocks of a Transformer: take ddp for {args.model}, or icat_small.")

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:  # torchrun set it
        join("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        train(args, dist.get_rank(), dist.get_world_size(), device)
        dist.destroy_process_group()
    else:
        train(args, 0, 1, device)


if __name__ == "__main__":
    main()
