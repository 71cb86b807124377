"""The digits by 3 losses x 3 schedules x 2 batch sizes x 3 seeds, and the report that compares the 54 trainings.

    python digits_sweep.py              # into digits-sweep/, its report into digits-sweep.html; the same line goes on
    python digits_sweep.py out 2 3      # other folder, 2 workers, 3 epochs

The same from the command line:

    landscape sweep digits_task.py --loss "cross_entropy,focal(gamma=2),0.9*cross_entropy + ramp(0, 0.1)*soft_ece" \\
        --schedule "constant,cosine,warmup_cosine(warmup=0.1)" --batch-size 32,256 --lr 0.2 --seeds 3 --epochs 30 \\
        --only performance,eigenvalues,sharpness,calibration -o digits-sweep --report digits-sweep.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from landscape import write_report
from landscape.probes import How, Sweep  # pyright: ignore[reportMissingImports]


def main(out: str = "digits-sweep", workers: int = 1, epochs: int = 30, seeds: int = 3) -> None:
    sweep = Sweep(
        str(Path(__file__).with_name("digits_task.py")) + ":digits",
        out,
        loss=["cross_entropy", "focal(gamma=2)", "0.9*cross_entropy + ramp(0, 0.1)*soft_ece"],
        schedule=["constant", "cosine", "warmup_cosine(warmup=0.1)"],
        batch_size=[32, 256],
        lr=0.2,
        seeds=seeds,
        epochs=epochs,
        how=How(only=["performance", "eigenvalues", "sharpness", "calibration"]),
    )
    found = sweep.run(resume=True, workers=workers, progress=sys.stderr.isatty(), say=print)
    print(f"{'over the seeds':70} {'lambda_max':>20} {'ECE':>18} {'test accuracy':>18}")
    for group in found.groups():
        numbers = [group.value(k) for k in ("curvature.eigenvalues", "calibration.ece", "accuracy.test")]
        print(f"{group.label:70}", *(f"{mean:9.4f} ± {spread:6.4f}" for mean, spread in numbers))
    if found.finished:
        write_report([str(path) for path in found.archives], f"{out}.html")
        print(f"{out}.html compares them")


if __name__ == "__main__":
    folder, *numbers = [*sys.argv[1:], *["digits-sweep", "1", "30", "3"][len(sys.argv) - 1 :]]
    main(folder, *map(int, numbers))
