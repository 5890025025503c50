"""An archive to streams, or to labels, on all processors of a machine or of a Ray cluster.

    python bulk.py compress photos photos-cdz --codec bmshj2018_hyperprior
    python bulk.py classify photos-cdz labels --model fa_cresnet39
    python bulk.py classify photos labels --model jpeg_resnet18          # JPEG files as they are

SOURCE is a folder of files or of WebDataset shards; a run that was stopped goes on when it is started again. With a
cluster, give ``--address``, and folders that all its machines see. Needs ``pip install 'cdzoo[interop]'``.
"""

from __future__ import annotations

import argparse

import ray

import cdzoo
from cdzoo.interop.ray import classify, compress


def main() -> None:
    """Do it, and print what lies in the output folder then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("compress", "classify"))
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--codec", default="bmshj2018_hyperprior", help="codec, for compress")
    parser.add_argument("--model", default="fa_cresnet39", help="network, for classify; one of 'cdzoo list'")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT, or another member's name")
    parser.add_argument("--labels", action="store_true", help="write class numbers beside the streams")
    parser.add_argument("--part-size", type=int, default=1000, help="files of a folder in a part")
    parser.add_argument("--workers", type=int, help="by default, one for each processor")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each worker; a share of one is fine")
    parser.add_argument("--address", help="of a Ray cluster; by default, this machine alone")
    args = parser.parse_args()
    ray.init(args.address, log_to_driver=False)
    how = {"part_size": args.part_size, "concurrency": args.workers, "num_gpus": args.gpus}
    if args.command == "compress":
        codec = cdzoo.get_codec(args.codec, weights=args.weights)
        summary = compress(codec, args.source, args.output, labels=args.labels, **how)
    else:
        weights = cdzoo.get_model_weights(args.model)[args.weights]
        model = cdzoo.get_model(args.model, weights=weights)
        if model.latent_stride is not None:  # it reads latents, not coefficients
            model = cdzoo.compose(weights.build_codec(), model)
        summary = classify(model, args.source, args.output, **how)
    print(f"{summary.files} files in {summary.parts} parts, of which {summary.skipped} were there before")
    print(f"{summary.failed} files could not be read: see the column 'error'")


if __name__ == "__main__":
    main()
