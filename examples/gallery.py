"""Make the gallery: every picture of docs/gallery.md by the command that stands beside it, from the demo's archives.

`python gallery.py DEMO DOCS`, after `landscape demo -o DEMO`. What the demo doesn't measure (densities, a path, two
recorded trainings) is measured first, once. `make gallery` runs both.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

import landscape as ls
from landscape.probes import (  # pyright: ignore[reportMissingImports]
    CurvatureProbe,
    GradientNorms,
    LearningRate,
    Recorder,
    every,
)

#: Picture -> (title, what one sees, the command; {demo} is the demo's folder).
PICTURES = {
    "surfaces": (
        "Loss surfaces of four trainings on one scale",
        "Two losses by two schedules. Trained with label smoothing, the same network stands in a shallower bowl, at a "
        "higher loss: read the depth beside the loss that was trained.",
        "landscape figure {demo}/*.landscape.h5 surface --style screen",
    ),
    "surface-3d": (
        "The same, turned",
        "Any view, any limits; heights and colors are shared.",
        "landscape figure {demo}/cross_entropy-*.landscape.h5 surface --style screen --view 30,-60",
    ),
    "calibration": (
        "Is the confidence right, and can it be mended?",
        "Before (squares) and after (dots) a fitted temperature, on predictions that the fit has not seen. Bars are "
        "exact intervals, gray is what a calibrated model would show with so few samples.",
        "landscape figure {demo}/*-cosine.landscape.h5 recalibration --style screen",
    ),
    "lines": (
        "Along one direction",
        "Curves lie over one another; dots are the checkpoints.",
        "landscape figure {demo}/*.landscape.h5 line --style screen",
    ),
    "density": (
        "The whole spectrum of the Hessian",
        "Stochastic Lanczos quadrature, with a band over the random vectors.",
        "landscape figure {demo}/density-*.h5 density --style screen",
    ),
    "path": (
        "From one training to another",
        "A straight path between two checkpoints, with each segment's barrier where there is one: these two, from one "
        "initialization, lie in one valley.",
        "landscape figure {demo}/path.h5 path --style screen",
    ),
    "training": (
        "The edge of stability",
        "Two trainings by full-batch gradient descent, recorded by hooks on the optimizer: the largest eigenvalue "
        "rises to the largest at which gradient descent is stable, 2 / learning rate, and stays there (Cohen et al. "
        "2021).",
        "landscape figure {demo}/gd-rate-*.h5 training --style screen",
    ),
}
#: Colors of a picture's palette: enough for a surface, and a third of the bytes.
COLORS = 128


def main(demo: Path, docs: Path) -> None:
    """Measure what is missing, draw every picture, and write the page."""
    measure(demo)
    pictures = docs / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Gallery",
        "",
        "Every picture is made by the command above it, from the archives of `landscape demo`; `make gallery` makes",
        "them anew. Each command also writes the caption below the picture, a methods paragraph and BibTeX.",
        "",
    ]
    for name, (title, seen, command) in PICTURES.items():
        picture = pictures / f"{name}.png"
        draw(command.format(demo=demo), picture)
        caption = picture.with_suffix(".txt").read_text("utf-8").split("\n\n")[1]
        for beside in (".txt", ".bib"):
            picture.with_suffix(beside).unlink()
        shown = command.format(demo="landscape-demo")
        lines += [f"## {title}", "", seen, "", f"    {shown} -o {name}.png", "", f"![{title}](gallery/{name}.png)", ""]
        lines += [f"*{caption.replace('*', chr(92) + '*')}*", ""]
    photograph(demo / "report.html", docs / "report.png")
    (docs / "gallery.md").write_text("\n".join(lines).replace(f"{demo}/", "landscape-demo/"), encoding="utf-8")
    print(docs / "gallery.md")


def photograph(page: Path, out: Path) -> None:
    """Save the first screen of the demo's report as a picture, where Debian's chromium is installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"{out} stays as it is: a picture of the page needs chromium")
        return
    arguments = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1425,1250"]
    arguments += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--virtual-time-budget=20000"]
    where = [f"--screenshot={out.resolve()}", page.resolve().as_uri()]
    for _ in range(5):
        subprocess.run([chromium, *arguments, *where], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken = Image.open(out).convert("RGB")
        # The browser's own clock may run out before the surfaces are drawn: below the table there is text alone then.
        if len(taken.crop((0, 950, *taken.size)).getcolors(1 << 24) or ()) > 2000:
            break
    else:
        raise SystemExit(f"the surfaces of {page} were not drawn in time for {out}; try again on a quieter machine")
    # The runs' colors are few pixels: taken by how far they lie apart, not by how often they come.
    small = taken.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(out, optimize=True)


def draw(command: str, out: Path) -> None:
    """Run a command of the gallery, its output going to `out`, and shrink the picture."""
    program, *arguments = shlex.split(command)
    assert program == "landscape"
    found = [path for a in arguments for path in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
    run(*found, "-o", str(out), "--force")
    Image.open(out).convert("RGB").quantize(COLORS).save(out, optimize=True)


def run(*arguments: str) -> None:
    """Run landscape in a process of its own, as a person would."""
    subprocess.run([sys.executable, "-m", "landscape.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(demo: Path) -> None:
    """Measure what the gallery shows beyond the demo's archives, where it isn't there yet."""
    for schedule in ("constant", "cosine"):
        out = demo / f"density-{schedule}.h5"
        if not out.exists():
            # Half the random vectors of the default, and so half the time, for a band that is still narrow.
            few = ("--only", "density", "--option", "density.draws=4")
            run("probe", f"{demo}/cross_entropy-{schedule}.pt", *few, "-o", str(out))
    if not (demo / "path.h5").exists():
        states = [demo / f"cross_entropy-{s}.pt" for s in ("constant", "cosine")]
        task = ls.load_task("landscape.probes.demo.digits:digits")
        ls.load_checkpoint(states[0], task)
        path = ls.interpolate(task, states[0], states[1], splits=("train", "test"))
        ls.save_archive(demo / "path.h5", path)
    for rate in (0.3, 0.45):
        out = demo / f"gd-rate-{rate}.h5"
        if not out.exists():
            record(out, rate)


def record(out: Path, rate: float, steps: int = 900) -> None:
    """Record full-batch gradient descent of a small network on the demo's digits, curvature every 30 steps."""
    X, y = ls.load_task("landscape.probes.demo.digits:digits").train
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.Tanh(), torch.nn.Linear(48, 48), torch.nn.Tanh(),
        torch.nn.Linear(48, 10),
    )  # fmt: skip
    loss_of = torch.nn.MSELoss()
    target = torch.nn.functional.one_hot(y, 10).float() * 10**0.5
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    task = ls.Task(net, loss_of, train=(X, target))
    probes = [GradientNorms(), LearningRate(), CurvatureProbe(when=every(steps=30), samples=None, draws=0)]
    with Recorder(out, net, optimizer, task=task, probes=probes, facts={"loss": "squared error"}) as rec:
        for _ in range(steps):
            loss = loss_of(net(X), target)
            rec.log(loss=loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
