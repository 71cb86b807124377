"""What the names and shapes in a checkpoint say about the model that wrote it: layers, inputs, classes."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..checkpoint import Checkpoint
from .adapters import is_adapter_file
from .dense import dense_outputs, stage, transposed

Data = Literal["images", "volumes", "signals", "tokens", "rows", "sequences", "adapter", "unknown"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SPATIAL: dict[int, Data] = {3: "signals", 4: "images", 5: "volumes"}  # by the dimensions of the convolutions' weights
_HEAD = re.compile(r"(^|[._])(fc|head|heads|classifier|output|out|logits|lm_head|score|predictor|cls)([._]|\d|$)")
_EMBEDDING = re.compile(r"(^|[._])(emb|embed|embeds|embedding|embeddings|wte|tok|token|tokens|word|words)([._]|_|$)")
_ATTENTION = re.compile(r"attn|attention|in_proj_weight")
_POSITION = re.compile(r"pos|wpe|segment|token_type|type_emb|relative")
# Blocks of torchvision's ResNets: https://doi.org/10.1109/CVPR.2016.90, table 1.
_RESNETS: dict[tuple[int | bool, ...], str] = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
# Auto classes of transformers by how the architecture's name ends, longest first.
_AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}
# Auto classes of transformers by what PEFT calls an adapter's task.
_TASK_TYPES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class Guess:
    """What a checkpoint looks like. `inputs`: channels of images, features of rows, or the size of the vocabulary.

    `layers`: the lines of an nn.Sequential that loads these weights, empty where the model is of another kind.
    `auto_class`: of transformers, or the `architecture` itself where none has its head.
    `imports` and `model`: lines that make a well-known model.
    """

    data: Data
    inputs: int | None
    classes: int | None
    layers: tuple[str, ...] = ()
    auto_class: str = ""
    architecture: str = ""
    imports: str = ""
    model: str = ""
    lightning: bool = False
    #: `classes` are those of each pixel: the last layer is a convolution (`dense.dense_outputs`).
    dense: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def rebuilds(self) -> bool:
        """Whether as much comes out as goes in, as of an autoencoder."""
        return self.classes == self.inputs is not None and (self.dense or self.data == "rows")

    @property
    def sentence(self) -> str:
        """What it looks like, in a few words."""
        kind = {
            "images": f"images with {self.inputs} channels",
            "volumes": f"volumes with {self.inputs} channels",
            "signals": f"signals with {self.inputs} channels",
            "tokens": f"tokens from a vocabulary of {self.inputs}",
            "rows": f"rows of {self.inputs} features",
            "sequences": f"sequences of {self.inputs} features",
            "adapter": "an adapter (PEFT), without its base model",
            "unknown": "inputs unknown",
        }[self.data]
        if self.inputs == 1:
            kind = kind.replace("channels", "channel").replace("features", "feature")
        out = {None: "", 1: ", one output"}.get(self.classes, f", {self.classes} outputs")
        place = {"volumes": " a voxel", "signals": " a sample"}.get(self.data, " a pixel")
        return kind + out + (place if self.dense else "")


def guess(checkpoint: Checkpoint) -> Guess:
    """Return what the names and shapes say. Never raises: what is not recognized is said to be unknown."""
    weights = _in_order(checkpoint)
    if is_adapter_file(checkpoint.weights):
        about = checkpoint.facts.get("adapter_config")
        kind = about.get("task_type") if isinstance(about, dict) else None
        auto = _TASK_TYPES.get(kind, "AutoModel") if isinstance(kind, str) else "AutoModel"
        return Guess("adapter", None, None, auto_class=auto)
    data, inputs = _inputs(weights)
    classes, tied = _classes(weights), _tied(weights)
    dense = dense_outputs(weights) if data in _SPATIAL.values() else None
    if tied is not None:
        data, inputs, classes = "tokens", tied, tied
    config = checkpoint.facts.get("config")
    names = config.get("architectures") if isinstance(config, dict) else None
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = Guess(data, inputs, dense or classes, dense=dense is not None, remarks=_remarks(weights, tied is not None))
    if isinstance(config, dict) and re.fullmatch(r"[A-Za-z_]\w*", architecture):
        # A class of somebody's own (auto_map) comes through an auto class, any other from transformers by its name.
        own = config.get("auto_map") or not architecture[0].isupper() or keyword.iskeyword(architecture)
        plain = "AutoModel" if own else architecture
        auto = next((a for end, a in _AUTO_CLASSES.items() if architecture.endswith(end)), plain)
        return _with(
            found, auto_class=auto, architecture=architecture, remarks=(f"architecture {architecture}", *found.remarks)
        )
    if "pytorch-lightning_version" in checkpoint.facts:
        return _with(found, lightning=True)
    layers = sequential_layers(weights)
    if layers:
        table = re.match(r"nn\.Embedding\((\d+)", layers[0])
        return _with(found, layers=layers, **({"data": "tokens", "inputs": int(table[1])} if table else {}))
    imports, model, remark = _well_known(weights, checkpoint.facts, found)
    return _with(found, imports=imports, model=model, remarks=(*remark, *found.remarks))


def is_statistic(name: str) -> bool:
    """Whether this is a running statistic of a normalization layer: saved, but no parameter."""
    return name.endswith(_STATISTICS)


def _with(found: Guess, **changes: Any) -> Guess:
    return Guess(**{**vars(found), **changes})


def _in_order(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} in the order in which the layers come; safetensors files don't keep it."""
    shapes = {k: tuple(v.shape) for k, v in checkpoint.weights.items()}
    prefix = _common_prefix(list(shapes))
    shapes = {k.removeprefix(prefix): v for k, v in shapes.items()}
    if list(shapes) == sorted(shapes) or checkpoint.path.endswith((".safetensors", ".json")):

        def natural(name: str) -> list[Any]:
            return [stage(name), *((int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)|\.", name) if p)]

        shapes = dict(sorted(shapes.items(), key=lambda item: natural(item[0])))
    return shapes


def _common_prefix(names: list[str]) -> str:
    prefix = ""
    while names:
        first = names[0][len(prefix) :].split(".")[0]
        longer = f"{prefix}{first}."
        if first.isdigit() or not all(n.startswith(longer) and n != longer for n in names):
            break
        prefix = longer
    return prefix


def _inputs(weights: Mapping[str, tuple[int, ...]]) -> tuple[Data, int | None]:
    """Return the kind of input and its size, from the first layer that takes it."""
    matrices = {k: s for k, s in weights.items() if k.rpartition(".")[2] == "weight"}
    for dims in (4, 5):
        first = next((k for k, s in matrices.items() if len(s) == dims), None)
        if first is not None:
            return _SPATIAL[dims], _channels(first, weights)
    tables = [s for k, s in matrices.items() if len(s) == 2 and _is_table(k, weights) and not _POSITION.search(k)]
    if tables:
        return "tokens", max(s[0] for s in tables)
    first = next((k for k, s in matrices.items() if len(s) == 3), None)
    if first is not None:
        return _SPATIAL[3], _channels(first, weights)
    recurrent = next((s for k, s in weights.items() if k.endswith("weight_ih_l0")), None)
    if recurrent is not None:
        return "sequences", recurrent[1]
    first = next((s for s in matrices.values() if len(s) == 2), None)
    if first is None:
        return "unknown", None
    return "sequences" if any(_ATTENTION.search(k) for k in weights) else "rows", first[1]


def _channels(name: str, weights: Mapping[str, tuple[int, ...]]) -> int:
    """Return what a first convolution takes: a generator begins with a transposed one."""
    shape, names = weights[name], list(weights)
    after = weights[names[names.index(name) + 1]] if name != names[-1] else ()  # its bias, or that of its normalization
    vector = after if len(after) == 1 and after[0] in shape[:2] else None
    return shape[0] if transposed(shape, vector, None) else shape[1]


def _is_table(name: str, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a matrix embeds tokens: by its name, and without a bias beside it, which a linear layer has."""
    return _EMBEDDING.search(name) is not None and f"{name.rpartition('.')[0]}.bias" not in weights


def _matrices(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {k: s for k, s in weights.items() if len(s) == 2 and k.rpartition(".")[2] == "weight"}


def _classes(weights: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the size of the output: the rows of the last matrix, that of a head if one is called so."""
    matrices = _matrices(weights)
    # Only near the top: the blocks of a transformer have parts called output, too.
    heads = [s for k, s in matrices.items() if _HEAD.search(".".join(k.split(".")[:2]))]
    if heads:
        return heads[-1][0]
    tables = {k for k in matrices if _is_table(k, weights)}
    rest = [s for k, s in matrices.items() if k not in tables]
    return rest[-1][0] if rest else None


def _tied(weights: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the vocabulary of a language model whose file holds one matrix for the token table and the output layer.

    Outside its numbered blocks there are then that matrix and tables of positions alone: safetensors keeps either name.
    """
    matrices = _matrices(weights)
    outside = {k: s for k, s in matrices.items() if not re.search(r"(^|\.)\d+\.", k)}
    tables = {k: s for k, s in outside.items() if not _POSITION.search(k)}
    if len(tables) != 1 or len(outside) == len(matrices) or any(len(s) >= 4 for s in weights.values()):
        return None  # the last: nets of pictures embed times and classes
    ((name, shape),) = tables.items()
    is_table = _is_table(name, weights)
    # A head alone reads features that something else made, unless positions were added to them.
    return shape[0] if is_table or (_HEAD.search(name) and len(outside) > 1) else None


def _remarks(weights: Mapping[str, tuple[int, ...]], tied: bool) -> tuple[str, ...]:
    said = ["one matrix of tokens: taken for both the token table and the output layer"] if tied else []
    names = list(weights)
    if any(n.endswith("running_mean") for n in names):
        said.append("BatchNorm layers: measured with their running statistics (batchnorm='eval')")
    if any(_ATTENTION.search(n) for n in names):
        said.append("attention layers: measured on PyTorch's math kernel, which has a second derivative")
    if any(n.endswith("weight_ih_l0") for n in names):
        gates = {4: "nn.LSTM", 3: "nn.GRU", 1: "nn.RNN"}
        for name, shape in weights.items():
            if name.endswith("weight_ih_l0"):
                hidden = weights.get(name.replace("weight_ih_l0", "weight_hh_l0"), shape)[-1]
                kind = gates.get(shape[0] // max(hidden, 1), "recurrent")
                said.append(f"{name.removesuffix('.weight_ih_l0')}: {kind}({shape[1]}, {hidden})")
    return tuple(said)


# A plain nn.Sequential ----------------------------------------------------------------------------------------


def sequential_layers(weights: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the lines of the nn.Sequential with these names and shapes; empty where it is none.

    Layers without weights leave only a gap in the numbers: an activation, pooling or flattening is put there by
    what is usual, and marked as a guess. The result is built (without memory) and compared before it is returned.
    """
    groups: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in weights.items():
        number, _, kind = name.partition(".")
        if not number.isdigit() or kind not in ("weight", "bias", *_STATISTICS) or 0 in shape:
            return ()
        groups.setdefault(int(number), {})[kind] = shape
    lines: list[str] = []
    state = _Flow()
    numbers = sorted(groups)
    if not numbers or numbers[-1] > 10_000:
        return ()
    for i, number in enumerate(numbers):
        after = [groups[n] for n in numbers[i + 1 :]]
        lines += _between(number - len(lines), state, groups[number])
        line = _layer(groups[number], state, after)
        if line is None:
            return ()
        lines.append(line)
    return tuple(lines) if _loads(lines, weights) else ()


@dataclass
class _Flow:
    """What flows between the layers: how many channels, and over how many spatial dimensions (None: unknown)."""

    channels: int | None = None
    dims: int | None = None


def _layer(group: Mapping[str, tuple[int, ...]], flow: _Flow, after: list[dict[str, tuple[int, ...]]]) -> str | None:
    weight, bias = group.get("weight"), group.get("bias")
    if "running_mean" in group:
        flow.channels = group["running_mean"][0]
        flow.dims = flow.dims or next((len(g["weight"]) - 2 for g in after if len(g.get("weight", ())) > 2), 0)
        affine = "" if weight else ", affine=False"
        return f"nn.BatchNorm{max(flow.dims, 1)}d({flow.channels}{affine})"
    if weight is None:
        return None
    if len(weight) == 1:
        if bias is None:
            return f"nn.PReLU({weight[0]})" if weight[0] == 1 or flow.dims else f"nn.RMSNorm({weight[0]})"
        return (
            f"nn.GroupNorm(1, {weight[0]})  # >>> check the number of groups"
            if flow.dims
            else f"nn.LayerNorm({weight[0]})"
        )
    if len(weight) == 2:
        return _linear(weight, bias, flow, after)
    return _convolution(weight, bias, flow) if len(weight) <= 5 else None


def _linear(weight: tuple[int, ...], bias: Any, flow: _Flow, after: list[dict[str, tuple[int, ...]]]) -> str:
    following = next((g["weight"] for g in after if len(g.get("weight", ())) == 2), None)
    first = flow.channels is None
    flow.dims = 0
    if first and bias is None and following and following[1] % weight[1] == 0 and following[1] != weight[0]:
        flow.channels = weight[1]
        return f"nn.Embedding({weight[0]}, {weight[1]})"
    flow.channels = weight[0]
    return f"nn.Linear({weight[1]}, {weight[0]}{'' if bias else ', bias=False'})"


def _convolution(weight: tuple[int, ...], bias: tuple[int, ...] | None, flow: _Flow) -> str:
    dims, channels = len(weight) - 2, flow.channels
    kernel = weight[2:]
    size = str(kernel[0]) if len(set(kernel)) == 1 else str(kernel)
    padding = [k // 2 for k in kernel]
    pad = str(padding[0]) if len(set(padding)) == 1 else str(tuple(padding))
    flow.dims = dims
    end = "" if bias else ", bias=False"
    if transposed(weight, bias, channels):
        groups = bias[0] // weight[1] if bias else 1
        flow.channels = weight[1] * groups
        more = f", groups={groups}" if groups > 1 else ""
        return f"nn.ConvTranspose{dims}d({weight[0]}, {flow.channels}, {size}{more}{end})  # >>> check stride, padding"
    inside = weight[1] if channels is None or channels % weight[1] else channels
    groups = inside // weight[1]
    more = f", groups={groups}" if groups > 1 else ""
    flow.channels = weight[0]
    return f"nn.Conv{dims}d({inside}, {weight[0]}, {size}, padding={pad}{more}{end})  # >>> check stride, padding"


def _between(count: int, flow: _Flow, group: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return `count` layers without weights that usually stand here."""
    mark = "  # >>> check: a layer without weights"
    weight = group.get("weight", ())
    if count <= 0:
        return []
    to_linear = len(weight) == 2
    if flow.channels is None:
        return (
            ["nn.Flatten()" + mark, *["nn.Identity()" + mark] * (count - 1)]
            if to_linear
            else ["nn.Identity()" + mark] * count
        )
    pool = f"nn.MaxPool{flow.dims}d(2)" if flow.dims else ""
    if flow.dims and to_linear:
        head = [f"nn.AdaptiveAvgPool{flow.dims}d(1)"] if weight[1] == flow.channels and count > 1 else []
        tail = [*head, "nn.Flatten()"]
        body = ["nn.ReLU()", *([] if head else [pool])]
    else:
        tail = []
        body = ["nn.ReLU()", pool or "nn.Dropout()"]
    body = body[: count - len(tail)]
    body += ["nn.Identity()"] * (count - len(tail) - len(body))
    return [line + mark for line in (*body, *tail)]


def _loads(lines: list[str], weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Build the layers on the meta device and compare; the lines hold nothing but names of ours and numbers."""
    try:
        with torch.device("meta"):
            made = nn.Sequential(*[eval(line.partition("#")[0], {"nn": nn}) for line in lines])
    except (RuntimeError, ValueError, TypeError):
        return False
    expected = {k: tuple(v.shape) for k, v in made.state_dict().items()}
    counters = {k for k in expected if k.endswith("num_batches_tracked")}
    return set(weights) <= set(expected) <= set(weights) | counters and all(
        expected[k] == s for k, s in weights.items()
    )


# Well-known models --------------------------------------------------------------------------------------------


def _well_known(
    weights: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any], found: Guess
) -> tuple[str, str, tuple[str, ...]]:
    """Return the import, the line that makes the model, and remarks; empty lines where it is not known."""
    arch = facts.get("arch")
    if isinstance(arch, str) and re.fullmatch(r"[A-Za-z]\w*", arch):
        if "best_acc1" in facts:  # PyTorch's ImageNet example
            return "import torchvision", f"torchvision.models.{arch}(num_classes={found.classes})", ()
        if {"metric", "version"} & set(facts):
            options = f"num_classes={found.classes}" + (f", in_chans={found.inputs}" if found.inputs != 3 else "")
            return "import timm", f"timm.create_model({arch!r}, {options})", ()
    if isinstance(facts.get("model_args"), dict) and any(k.endswith("wte.weight") for k in weights):
        return "from model import GPT, GPTConfig", "GPT(GPTConfig(**SETTINGS))", ("written by nanoGPT's train.py",)
    blocks = [len({k.split(".")[1] for k in weights if k.startswith(f"layer{i}.")}) for i in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in weights
    name = _RESNETS.get((*blocks, bottleneck)) if "fc.weight" in weights and "bn1.weight" in weights else None
    if name and weights.get("conv1.weight") == (64, 3, 7, 7):
        return "import torchvision", f"torchvision.models.{name}(num_classes={found.classes})", ()
    if name:
        first = weights.get("conv1.weight")
        return "", "", (f"like torchvision's {name}, but its first convolution is {first}: a variant for small images",)
    embed = weights.get("patch_embed.proj.weight")
    if embed and "blocks.0.attn.qkv.weight" in weights:
        size = {192: "tiny", 384: "small", 768: "base", 1024: "large"}.get(embed[0])
        if size:
            options = f"num_classes={found.classes}" + (f", in_chans={embed[1]}" if embed[1] != 3 else "")
            return "import timm", f"timm.create_model('vit_{size}_patch{embed[-1]}_224', {options})", ()
    return "", "", ()
