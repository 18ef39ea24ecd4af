#!/usr/bin/env python3
"""Trains a small network on handwritten digits with PyTorch's DistributedDataParallel, over Maypole or over gloo.

    torchrun --nproc-per-node 4 examples/ddp_digits.py
    torchrun --nproc-per-node 4 examples/ddp_digits.py --backend gloo
    python -m maypole run -n 4 examples/ddp_digits.py

Each rank holds the whole network and works on its share of every batch; DDP adds the gradients up while the backward
pass still computes. The only line that concerns Maypole is `import maypole.torch`.

At the end it prints the accuracy on images that were not trained on, the median time of a step, and a digest of the
weights, and exits with 1 if the network cannot read digits or the ranks do not hold the same weights to the bit. With
two ranks the digest is the same over either backend: a sum of two numbers does not depend on their order. With more,
backends add up in different orders; `--save` and `--compare` show by how much the weights then differ.
"""

import argparse
import gzip
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

IMAGES, PIXELS, CLASSES = 1797, 64, 10
REQUIRED_ACCURACY = 0.95


def digits():
    """Training and test set as (pixels, labels); every fifth image is kept out of training. See data/README.md."""
    with gzip.open(Path(__file__).resolve().parent / "data" / "digits.gz") as file:
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    pixels = data[: IMAGES * PIXELS].view(IMAGES, PIXELS).float() / 16
    labels = data[IMAGES * PIXELS :].long()
    test = torch.arange(IMAGES) % 5 == 0
    return (pixels[~test], labels[~test]), (pixels[test], labels[test])


def network(hidden):
    hidden_layers = [nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*hidden_layers, nn.Linear(hidden, CLASSES))


def train(model, training, options):
    """Runs all epochs; the seconds that each step took."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pixels, labels = training
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    random = torch.Generator().manual_seed(options.seed)  # the same on all ranks: all cut the same batches
    share = options.batch // ranks
    steps = []
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(len(labels), generator=random)
        total = 0.0
        # The last, short batch is left out: DDP's mean over ranks is one over images only where shares are even.
        for start in range(0, len(order) - share * ranks + 1, share * ranks):
            mine = order[start + rank * share : start + (rank + 1) * share]
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels[mine]), labels[mine])
            loss.backward()  # the gradients come back from here already averaged over the ranks
            optimizer.step()
            steps.append(time.perf_counter() - began)
            total += loss.item()
        if rank == 0 and not options.json:
            batches = len(order) // (share * ranks)
            print(f"epoch {epoch:>3}  loss {total / batches:.4f}", flush=True)
    return steps


def correct_images(model, test):
    """How many test images are read correctly: each rank tests its part, and the counts are added up."""
    pixels, labels = (part[dist.get_rank() :: dist.get_world_size()] for part in test)
    with torch.no_grad():
        correct = (model(pixels).argmax(1) == labels).sum()
    dist.all_reduce(correct)
    return correct.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="maypole", choices=["maypole", "gloo"])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64, help="images in a batch, over all ranks (64)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the two hidden layers (256)")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1, help="decides the initial weights and the order of the images")
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of the text")
    parser.add_argument("--save", type=Path, help="write the weights to this file")
    parser.add_argument("--compare", type=Path, help="say how far the weights are from those in this file")
    options = parser.parse_args()
    if options.backend == "maypole":
        import maypole.torch  # noqa: F401  registers the backend

    torch.set_num_threads(1)  # the ranks already keep the cores busy
    dist.init_process_group(options.backend)
    if options.batch < dist.get_world_size():
        parser.error(f"--batch {options.batch} is less than the {dist.get_world_size()} ranks")
    torch.manual_seed(options.seed)
    training, test = digits()
    model = DistributedDataParallel(network(options.hidden))
    steps = train(model, training, options)
    accuracy = correct_images(model.module, test) / len(test[1])

    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    agreeing = digests.count(digest)
    result = {
        "backend": options.backend,
        "ranks": dist.get_world_size(),
        "accuracy": accuracy,
        "step_us": statistics.median(steps) * 1e6,
        "ranks_agreeing": agreeing,
        "weights": len(weights),
        "digest": digest,
    }
    if dist.get_rank() == 0:
        if options.save:
            torch.save(weights, options.save)
        if options.compare:
            result["difference"] = (weights - torch.load(options.compare)).abs().max().item()
        if options.json:
            print(json.dumps(result))
        else:
            print(f"{options.backend}, {result['ranks']} ranks, {len(weights)} weights")
            print(f"test accuracy {100 * accuracy:.1f}%, required {100 * REQUIRED_ACCURACY:.0f}%")
            print(f"{result['step_us']:.0f} us a step (median of {len(steps)})")
            print(f"weights bit-identical on {agreeing} of {result['ranks']} ranks, sha256 {digest}")
            if options.compare:
                print(f"largest difference to the weights of {options.compare}: {result['difference']:.1e}")
    dist.destroy_process_group()
    return 0 if accuracy >= REQUIRED_ACCURACY and agreeing == len(digests) else 1


if __name__ == "__main__":
    sys.exit(main())
