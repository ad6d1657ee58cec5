"""Trains a small neural network to tell two interleaved half moons apart. Standard library only.

Reads    data/moons.csv             3,000 points: x, y, label
Writes   results/checkpoint.json    after every CHECKPOINT_EVERY epochs, replaced in one step
         results/metrics.json       at the end
Stops    on SIGTERM, after the epoch under way: writes a checkpoint and exits with 143.
Resumes  from results/checkpoint.json when it is there, and ends with the very weights that a run
         without interruption would have reached.

EPOCHS, CHECKPOINT_EVERY and SEED can be set in the environment.
"""

import csv
import json
import math
import os
import random
import signal
import sys
import time

HIDDEN = 48
BATCH = 32
RATE = 0.3
EPOCHS = int(os.environ.get("EPOCHS", "60"))
CHECKPOINT_EVERY = int(os.environ.get("CHECKPOINT_EVERY", "5"))
SEED = int(os.environ.get("SEED", os.environ.get("TPI_SLOT", "0")))

RESULTS = "results"
CHECKPOINT = os.path.join(RESULTS, "checkpoint.json")
METRICS = os.path.join(RESULTS, "metrics.json")


def load(path):
    with open(path, newline="") as file:
        rows = [(float(r["x"]), float(r["y"]), int(r["label"])) for r in csv.DictReader(file)]
    held_out = len(rows) // 5
    return rows[held_out:], rows[:held_out]


def write_json(path, value):
    """A reader, or a copy taken half-way, sees the old file or the new one, never a part of one."""
    part = path + ".part"
    with open(part, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Network:
    """x, y -> HIDDEN tanh units -> one logistic unit."""

    def __init__(self, weights):
        self.weights = weights

    @staticmethod
    def fresh(seed):
        draw = random.Random(seed)
        return Network(
            {
                "wx": [draw.gauss(0, 1) for _ in range(HIDDEN)],
                "wy": [draw.gauss(0, 1) for _ in range(HIDDEN)],
                "b": [0.0] * HIDDEN,
                "v": [draw.gauss(0, 1 / math.sqrt(HIDDEN)) for _ in range(HIDDEN)],
                "c": [0.0],
            }
        )

    def forward(self, x, y):
        w = self.weights
        hidden = [math.tanh(a * x + b * y + c) for a, b, c in zip(w["wx"], w["wy"], w["b"])]
        z = w["c"][0] + sum(v * h for v, h in zip(w["v"], hidden))
        z = max(-30.0, min(30.0, z))
        return hidden, 1.0 / (1.0 + math.exp(-z))

    def learn(self, batch):
        """One step of gradient descent on the mean cross-entropy of `batch`; returns its sum."""
        w = self.weights
        gx, gy, gb, gv = ([0.0] * HIDDEN for _ in range(4))
        gc = 0.0
        loss = 0.0
        for x, y, label in batch:
            hidden, p = self.forward(x, y)
            loss -= math.log(p if label else 1.0 - p)
            d = p - label
            gc += d
            for j in range(HIDDEN):
                h = hidden[j]
                gv[j] += d * h
                back = d * w["v"][j] * (1.0 - h * h)
                gx[j] += back * x
                gy[j] += back * y
                gb[j] += back
        step = RATE / len(batch)
        for name, gradient in (("wx", gx), ("wy", gy), ("b", gb), ("v", gv), ("c", [gc])):
            w[name] = [value - step * g for value, g in zip(w[name], gradient)]
        return loss

    def accuracy(self, rows):
        return sum((self.forward(x, y)[1] >= 0.5) == bool(label) for x, y, label in rows) / len(rows)


def main():
    train, test = load(os.path.join("data", "moons.csv"))
    os.makedirs(RESULTS, exist_ok=True)

    stopping = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))

    started = time.monotonic()
    network, done, resumed_from, loss = Network.fresh(SEED), 0, None, None
    if os.path.exists(CHECKPOINT):
        with open(CHECKPOINT) as file:
            checkpoint = json.load(file)
        if checkpoint["seed"] == SEED:
            network, done, loss = Network(checkpoint["weights"]), checkpoint["epoch"], checkpoint["loss"]
            resumed_from = done
            print(f"resuming after epoch {done}")
        else:
            print(f"ignoring a checkpoint made with SEED={checkpoint['seed']}", file=sys.stderr)

    def save(epoch):
        write_json(CHECKPOINT, {"seed": SEED, "epoch": epoch, "loss": loss, "weights": network.weights})

    print(f"training on {len(train)} points, testing on {len(test)}, {EPOCHS} epochs")
    for epoch in range(done + 1, EPOCHS + 1):
        # The order depends on the epoch alone, so a resumed run sees the same batches.
        order = train[:]
        random.Random(f"{SEED}/{epoch}").shuffle(order)
        loss = sum(network.learn(order[i : i + BATCH]) for i in range(0, len(order), BATCH)) / len(order)
        print(f"epoch {epoch:3}/{EPOCHS}  loss {loss:.4f}  test accuracy {network.accuracy(test):.3f}")
        if stopping:
            save(epoch)
            print(f"stopped by signal {stopping[0]} after epoch {epoch}; checkpoint written", file=sys.stderr)
            return 128 + stopping[0]
        if epoch % CHECKPOINT_EVERY == 0 or epoch == EPOCHS:
            save(epoch)

    metrics = {
        "epochs": EPOCHS,
        "loss": loss,
        "test_accuracy": network.accuracy(test),
        "resumed_from": resumed_from,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(METRICS, metrics)
    print(f"test accuracy {metrics['test_accuracy']:.3f} after {EPOCHS} epochs, {metrics['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
