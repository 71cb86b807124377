"""For a checkpoint without a task: say what it holds, and write a task file that fits it, ready to fill in."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pprint
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .checkpoints.guess import Guess, guess, is_statistic
from .errors import CheckpointError
from .paths import relative
from .scaffold_data import WHOLE_BATCH, data_lines, is_language_model, loss_lines

_FIRST, _LAST = 6, 3  # tensors shown: a stem and a head say most about a model (chosen by us)
_NAME = "mine"


def describe_checkpoint(checkpoint: Checkpoint) -> str:
    """Return what a checkpoint holds, in a few lines: names, shapes, parameters, optimizer, step, facts, remarks."""
    weights = checkpoint.weights
    trained = {k: v for k, v in weights.items() if not is_statistic(k)}
    kinds = Counter(str(v.dtype).removeprefix("torch.") for v in trained.values())
    size = sum(v.numel() * v.element_size() for v in weights.values())
    # Tied weights stand in the file under each of their names, over one memory.
    once = {(v.data_ptr(), tuple(v.shape), v.stride()) if v.numel() else k: v.numel() for k, v in trained.items()}
    tied = f" ({len(trained) - len(once)} tied)" * (len(once) < len(trained))
    lines = [
        f"{_clean(checkpoint.path)} holds {len(weights)} tensors{tied}, {sum(once.values()):,} "
        f"parameters ({', '.join(kinds)}; {_bytes(size)}) for {guess(checkpoint).sentence}:"
    ]
    names = list(weights)
    shown = names if len(names) <= _FIRST + _LAST + 1 else [*names[:_FIRST], "", *names[-_LAST:]]
    width = min(max((len(_clean(n)) for n in shown), default=0), 60)
    for name in shown:
        more = f"  ... {len(names) - _FIRST - _LAST} more ..."
        lines.append(f"  {_clean(name):<{width}}  {tuple(weights[name].shape)}" if name else more)
    for name, state in checkpoint.optimizers.items():
        lines.append(f"optimizer{f' {_clean(name)}' if name else ''}: {_optimizer(state)}")
    at = [f"{n} {v}" for n, v in (("step", checkpoint.step), ("epoch", checkpoint.epoch)) if v is not None]
    if at:
        lines.append(", ".join(at))
    facts = [f"{_clean(k)}={_clean(repr(v))[:60]}" for k, v in checkpoint.facts.items()]
    if facts:
        lines.append("beside the weights: " + ", ".join(facts[:8]) + ", ..." * (len(facts) > 8))
    lines += [f"note: {_clean(n)}" for n in checkpoint.notes]
    return "\n".join(lines)


def default_task_file(checkpoint: Checkpoint) -> str:
    """Return the name of the task file that `landscape init` writes when none is given: <checkpoint>_task.py."""
    stem = re.sub(r"\W+", "_", Path(checkpoint.path).stem).strip("_") or "my"
    return f"{stem}_task.py"


def next_commands(checkpoint: Checkpoint, file: str) -> tuple[str, ...]:
    """Return the lines to type from here to the first picture."""
    path, file = shlex.quote(checkpoint.path), shlex.quote(file)
    path += f" --weights {shlex.quote(checkpoint.chosen)}" if checkpoint.chosen else ""
    return (
        f"landscape init {path} -o {file}",
        f"landscape check {file} {path}",
        f"landscape probe {path} --task {file} --report report.html",
    )


def write_task_file(checkpoint: Checkpoint, out: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a commented task file that fits the checkpoint, and return its path.

    The model is written out where the names and shapes give it away (a plain nn.Sequential, a Transformers
    folder, some well-known models); everything else has a `>>> fill in`. The file is valid Python: until it is
    filled in, calling it says what is missing.

    Raises CheckpointError when the file exists (unless `force`) or cannot be written.
    """
    path = Path(out)
    if path.suffix != ".py":
        raise CheckpointError(f"{path} is no Python file; name the task file something.py")
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; pass --force to replace it, or name another file with -o")
    text = task_file_text(checkpoint, path)
    compile(text, str(path), "exec")  # a fault of ours, if any, must not reach the user as a broken file
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}; name another file with -o") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return path


def task_file_text(checkpoint: Checkpoint, path: Path) -> str:
    """Return the text of the task file; `path` is where it will stand."""
    found = guess(checkpoint)
    parts = _parts(checkpoint, found, path)
    _, check, probe = next_commands(checkpoint, str(path))
    header = [
        "# A task file: the model, the loss and the data of a training, for landscape-probe.",
        f"# Written for {_clean(checkpoint.path)}: {len(checkpoint.weights)} tensors,",
        f"# {found.sentence}.",
        *(f"# - {_clean(r)}" for r in found.remarks),
        "#",
        "# 1. Fill in what is marked with >>>.",
        f"# 2. {_clean(check)}",
        f"# 3. {_clean(probe)}",
    ]
    return "\n".join([*header, "", *parts]) + "\n"


# The parts of the file ----------------------------------------------------------------------------------------


def _parts(checkpoint: Checkpoint, found: Guess, path: Path) -> list[str]:
    if found.data == "adapter":
        return _adapter(checkpoint, found, path)
    if found.auto_class:
        return _transformers(checkpoint, found, path)
    if found.lightning:
        return _lightning(checkpoint)
    return _plain(checkpoint, found)


def _plain(checkpoint: Checkpoint, found: Guess) -> list[str]:
    loss, arguments = loss_lines(found)
    names = "Task, next_token, task" if is_language_model(found) else "Task, task"
    return [
        "from __future__ import annotations",
        "",
        "import torch",
        *([found.imports] if found.imports else []),
        "from torch import nn",
        "",
        f"from landscape import {names}",
        *_constants(checkpoint, found),
        "",
        "",
        *_model(checkpoint, found),
        "",
        "",
        *data_lines(found),
        "",
        "",
        "@task  # only a function with this mark is ever called",
        f"def {_NAME}() -> Task:",
        "    train, test = data()",
        "    return Task(",
        "        model(),  # untrained: the checkpoint's weights are put in",
        f"        {loss}",
        *WHOLE_BATCH,
        "        train=train,",
        "        test=test,  # held out: for calibration and the generalization gap; None if there is none",
        *arguments,
        f"        name={_quoted(Path(checkpoint.path).stem)},",
        "    )",
    ]


def _constants(checkpoint: Checkpoint, found: Guess) -> list[str]:
    """Return the settings that stand beside the weights: they say how the model was built."""
    names = ("model_args", "model_config", "hyper_parameters", "hparams", "config", "cfg", "args", "settings")
    name = next((n for n in names if checkpoint.facts.get(n) and isinstance(checkpoint.facts[n], dict)), None)
    if name is None or found.layers:
        return []
    return ["", f"# {name}, as the checkpoint keeps it", f"SETTINGS = {_literal(checkpoint.facts[name])}"]


def _model(checkpoint: Checkpoint, found: Guess) -> list[str]:
    if found.layers:
        width = max(len(_code(line)) for line in found.layers)
        return [
            "def model() -> nn.Module:",
            '    """The layers that the names and shapes in the checkpoint give away; it loads as it is."""',
            "    # >>> check what has no weights (activations, pooling, dropout) and strides: they leave no trace.",
            "    return nn.Sequential(",
            *(f"        {_aligned(line, width)}" for line in found.layers),
            "    )",
        ]
    if found.model:
        return [
            "def model() -> nn.Module:",
            '    """A well-known model, by its names and shapes."""',
            f"    return {found.model}  # >>> check that this is the model you trained",
        ]
    return [
        "def model() -> nn.Module:",
        '    """The model of your training, built with the same arguments; random weights are fine."""',
        "    # >>> fill in: import the class that you trained, and make it as your training does:",
        "    #   from my_project.models import Net   # modules beside this file are found",
        "    #   return Net(...)",
        f"    # Its parts, as the checkpoint names them: {_children(list(checkpoint.weights))}",
        '    raise NotImplementedError("fill in model(): the class that wrote this checkpoint")',
    ]


def _transformers(checkpoint: Checkpoint, found: Guess, path: Path) -> list[str]:
    config = checkpoint.facts["config"]
    problem = str(config.get("problem_type") or "")
    folder = relative(checkpoint.path, path.parent)
    fields = _fields(found)
    name = _quoted(Path(checkpoint.path).name)
    collator = "DataCollatorWithPadding(AutoTokenizer.from_pretrained(FOLDER))" if "input_ids" in fields else ""
    built = ".from_config" * found.auto_class.startswith("Auto")
    if found.auto_class in ("AutoModelForCausalLM", "AutoModelForMaskedLM"):
        masked = found.auto_class == "AutoModelForMaskedLM"
        collator = f"DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(FOLDER), mlm={masked})"
    return [
        "from __future__ import annotations",
        "",
        "from pathlib import Path",
        "",
        f"from transformers import AutoConfig, {found.auto_class}",
        "",
        "from landscape import Task, task",
        "",
        f"FOLDER = Path(__file__).parent / {_quoted(folder)}",
        "",
        "",
        *_rows(fields, collator, f"   ({_clean(problem)})" if problem else ""),
        "",
        "",
        "@task  # only a function with this mark is ever called",
        f"def {_NAME}() -> Task:",
        "    train, test, collator = data()",
        "    # untrained: the checkpoint's weights are put in, so that one file serves all checkpoints of a run",
        f"    model = {found.auto_class}{built}(AutoConfig.from_pretrained(FOLDER))",
        "    # the loss is the model's own, as in training",
        f"    return Task.from_transformers(model, train, collator, test=test, name={name})",
    ]


#: What models take, by how their architecture's name ends, as Transformers names them.
_FIELDS = {
    "ForQuestionAnswering": ("input_ids", "attention_mask", "start_positions", "end_positions"),
    "ForCTC": ("input_values", "attention_mask", "labels"),
    "ForAudioClassification": ("input_values", "attention_mask", "labels"),
    "ForPrediction": ("past_values", "future_values"),
    "ForImageClassification": ("pixel_values", "labels"),
    "ForSemanticSegmentation": ("pixel_values", "labels"),
    "ForObjectDetection": ("pixel_values", "labels"),
}
#: What they take by the kind of the data, where the name doesn't tell.
_FIELDS_OF_DATA = {
    "images": ("pixel_values", "labels"),
    "signals": ("input_values", "attention_mask", "labels"),
}


def _fields(found: Guess) -> list[str]:
    named = next((fields for end, fields in _FIELDS.items() if found.architecture.endswith(end)), None)
    return list(named or _FIELDS_OF_DATA.get(found.data, ("input_ids", "attention_mask", "labels")))


def _rows(fields: list[str], collator: str, more: str = "") -> list[str]:
    """Return the function that gives the data as a Trainer takes them."""
    return [
        "def data():",
        '    """The training and the held-out data, as a Trainer takes them."""',
        "    # >>> fill in: a Dataset (or a datasets.Dataset) whose rows are dicts with",
        f"    #   {', '.join(fields)}{more}, and what else its forward takes",
        *(
            ["    # >>> and the collator of your training, such as", f"    #   {collator}; None takes the default"]
            if collator
            else ["    # >>> and the collator of your training; None takes the default"]
        ),
        "    train = test = collator = None",
        "    if train is None:",
        f'        raise NotImplementedError("fill in data(): rows with {", ".join(fields)}")',
        "    return train, test, collator",
    ]


def _adapter(checkpoint: Checkpoint, found: Guess, path: Path) -> list[str]:
    where = Path(checkpoint.path)
    folder = where if where.is_dir() else where.parent
    about = checkpoint.facts.get("adapter_config")
    base = about.get("base_model_name_or_path") if isinstance(about, dict) else None
    known = isinstance(base, str) and base != ""
    collator = "DataCollatorWithPadding(AutoTokenizer.from_pretrained(BASE))"
    if found.auto_class == "AutoModelForCausalLM":
        collator = "DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(BASE), mlm=False)"
    return [
        "from __future__ import annotations",
        "",
        "from pathlib import Path",
        "",
        "from peft import PeftModel",
        f"from transformers import {found.auto_class}",
        "",
        "from landscape import Task, task",
        "",
        f"ADAPTER = Path(__file__).parent / {_quoted(relative(folder, path.parent))}",
        f"BASE = {_quoted(str(base))}  # as the adapter names its base model"
        if known
        else "BASE = None  # >>> fill in: the folder or the name of the base model, which the adapter does not name",
        "",
        "",
        *_rows(["input_ids", "attention_mask", "labels"], collator),
        "",
        "",
        "@task  # only a function with this mark is ever called",
        f"def {_NAME}() -> Task:",
        "    train, test, collator = data()",
        *(
            []
            if known
            else [
                "    if BASE is None:",
                '        raise NotImplementedError("fill in BASE: the folder or the name of the base model")',
            ]
        ),
        f"    base = {found.auto_class}.from_pretrained(BASE)"
        + ("  # >>> the class of your training" if found.auto_class == "AutoModel" else ""),
        "    # is_trainable: curvature and surface are those of the adapter's parameters, the base model stays so",
        "    # one file serves all adapters of this rank and these layers: each checkpoint's own is put in",
        "    model = PeftModel.from_pretrained(base, ADAPTER, is_trainable=True)",
        "    # the loss is the model's own, as in training",
        f"    return Task.from_transformers(model, train, collator, test=test, name={_quoted(folder.name)})",
    ]


def _lightning(checkpoint: Checkpoint) -> list[str]:
    settings = checkpoint.facts.get("hyper_parameters")
    given = _literal(settings) if isinstance(settings, dict) else "{}"
    said = (
        "# hyper_parameters, as the checkpoint keeps them; what is no plain value is left out"
        if settings
        else (
            "# the checkpoint keeps no hyper_parameters (self.save_hyperparameters()): give the arguments of training"
        )
    )
    return [
        "from __future__ import annotations",
        "",
        "from landscape import Task, task",
        "",
        said,
        f"SETTINGS = {given}",
        "",
        "",
        "def module():",
        '    """The LightningModule that was trained."""',
        "    # >>> fill in: import your class (modules beside this file are found)",
        "    #   from my_project import MyModule",
        "    #   return MyModule(**SETTINGS)",
        '    raise NotImplementedError("fill in module(): the LightningModule that wrote this checkpoint")',
        "",
        "",
        "def data():",
        '    """The LightningDataModule of the training, or {"train": loader, "test": loader}."""',
        "    # >>> fill in",
        "    #   from my_project import MyData",
        "    #   return MyData()",
        '    raise NotImplementedError("fill in data(): your LightningDataModule, or a dict of DataLoaders")',
        "",
        "",
        "@task  # only a function with this mark is ever called",
        f"def {_NAME}() -> Task:",
        "    # the loss is what training_step returns",
        f"    return Task.from_lightning(module(), data(), name={_quoted(Path(checkpoint.path).stem)})",
    ]


def _children(names: list[str]) -> str:
    """Return the top-level parts of a model with the number of their tensors."""
    while names and len({n.partition(".")[0] for n in names}) == 1 and all("." in n for n in names):
        names = [n.partition(".")[2] for n in names]
    counts = Counter(_clean(n.partition(".")[0]) for n in names)
    shown = ", ".join(f"{part} ({count})" for part, count in list(counts.items())[:8])
    return shown + (", ..." if len(counts) > 8 else "")


# Text ---------------------------------------------------------------------------------------------------------


class _Source(str):
    """Text that stands in Python source as it is."""

    def __repr__(self) -> str:
        return str(self)


def _literal(value: Mapping[str, Any]) -> str:
    """Return plain values as Python source; the strings in it are quoted, whatever they hold."""

    def sourced(inner: Any) -> Any:
        if isinstance(inner, Mapping):
            return {k: sourced(v) for k, v in inner.items()}
        if isinstance(inner, list):
            return [sourced(v) for v in inner]
        no_literal = isinstance(inner, float) and not math.isfinite(inner)
        return _Source(f"float('{inner}')") if no_literal else inner

    return pprint.pformat(sourced(value), width=100, sort_dicts=False)


def _quoted(text: str) -> str:
    """Return a Python string literal in double quotes."""
    return json.dumps(text)


def _clean(text: str) -> str:
    """Return text of a file that is not ours, fit for a comment or a terminal: one line, nothing that acts."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _code(line: str) -> str:
    return line.partition("  #")[0]


def _aligned(line: str, width: int) -> str:
    code, mark, comment = line.partition("  #")
    return f"{code + ',':<{width + 1}}  #{comment}" if mark else f"{code},"


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _optimizer(state: Mapping[str, Any]) -> str:
    groups = state["param_groups"]
    moments = next((m for m in state["state"].values() if isinstance(m, Mapping)), {})
    kept = ", ".join(_clean(str(k)) for k in moments) or "no state yet"
    rates = {g.get("lr") for g in groups if isinstance(g.get("lr"), int | float)}
    rate = f", lr {', '.join(f'{r:g}' for r in sorted(rates))}" if rates else ""
    return f"{len(groups)} group{'s' * (len(groups) != 1)}{rate}, state: {kept}"
