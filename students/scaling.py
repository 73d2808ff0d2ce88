"""Width and depth of timm's nets: what their constructors are given, scaled.

A rule leads from the arguments of a constructor and the two factors to the arguments that change. Most families share
one, `named`: it knows by the names of arguments which are channels, heads and blocks. Factors are continuous; channels
are rounded to what the family can take and every stage keeps at least one block, so a factor that is small enough stops
having an effect. A factor of 1 changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import Any

from kd.errors import InputError

Arguments = dict[str, Any]
Rule = Callable[[Arguments, float, float], Arguments]
Factors = float | tuple[float, ...]  # for the whole net, or one a stage

CHANNELS = """
    base_dim base_dims channels dim dims embed_dim embed_dims feature_dim growth_rate growth_rates head_hidden_size
    head_widths hidden_sizes in_chs inc_sec init_channels inner_dim intermediate_size k_r neck_chans num_channels
    num_features num_init_features out_chs partial_dim stage_conv_chs stage_out_chs stem_chs stem_hidden_dim stem_width
    transformer_dim width_list widths"""
BLOCKS = """
    block_config block_per_stage d depth depth_list depths k_sec layers levels num_blocks num_blocks_list num_modules
    parallel_depth serial_depths stages transformer_depth transformer_depths"""
POSITIONS = "global_att_blocks global_attn_indexes local_up_to_layer"
"""Of blocks."""
HEADS = {
    "base_dims": ("heads",),
    "dims": ("heads",),
    "embed_dim": ("num_heads", "num_heads_outer"),
    "embed_dims": ("num_heads",),
    "inner_dim": ("num_heads_inner",),
}
"""By the channels that they divide."""
FACTORS = {
    "widen_factor": "width",
    "width": "width",
    "width_factor": "width",
    "width_mult": "width",
    "deepen_factor": "depth",
    "depth_mult": "depth",
}


def scaled(value: int, factor: float, multiple: int = 1) -> int:
    """`value` times `factor`, to the nearest multiple, never below one; as it is where the factor is 1."""
    return value if factor == 1 else max(multiple, math.floor(value * factor / multiple + 0.5) * multiple)


def named(multiple: int | str = 8, fixed: str = "", channels: str = "", blocks: str = "", **factors: str) -> Rule:
    """Nets whose arguments say by their names what they count; configurations among them are read the same way.

    Channels become multiples of `multiple` (or of the argument of that name) and of four times their heads, so that a
    rotation of two axes fits into a head. A factor on all channels takes the place of the channels beside it.

    Args:
        fixed: names that stay as they are.
        channels, blocks: further names of these.
        factors: further names of factors, on what.
    """
    stay = set(fixed.split())
    of_channels, of_blocks = {*CHANNELS.split(), *channels.split()} - stay, {*BLOCKS.split(), *blocks.split()} - stay
    positions = {*POSITIONS.split()} - stay
    on = {name: axis for name, axis in (FACTORS | factors).items() if name not in stay}

    def rule(arguments: Arguments, width: float, depth: float) -> Arguments:
        by = {"width": width, "depth": depth}
        factor = {name: by[on[name]] for name in on if isinstance(arguments.get(name), float | int)}
        axes = {on[name] for name in factor}
        changed: Arguments = {}
        for name, value in arguments.items():
            if _holds_records(value):
                changed[name] = _inside(value, lambda record: rule(record, width, depth))
            elif name in factor:
                changed[name] = value * factor[name]
            elif name in of_channels and "width" not in axes:
                least = multiple if isinstance(multiple, int) else arguments[multiple]
                beside = next((h for h in HEADS.get(name, ()) if h in arguments and h not in stay), None)
                if beside is None:
                    changed[name] = each(value, width, least)
                else:
                    changed[beside] = _heads(arguments[beside], width)
                    changed[name] = _divided(value, width, least, changed[beside])
            elif name in of_blocks and "depth" not in axes:
                changed[name] = each(value, depth)
            elif name in positions:
                changed[name] = _moved(value, depth)
        return {name: value for name, value in changed.items() if value != arguments[name]}

    return rule


def each(value: Any, factor: float, multiple: int = 1) -> Any:
    """A count, or lists of counts, scaled; a 0 stays, and so does what is no number."""
    if isinstance(value, list | tuple):
        return type(value)(each(count, factor, multiple) for count in value)
    return scaled(value, factor, min(multiple, value)) if isinstance(value, int) and value > 0 else value


def _heads(heads: Any, width: float) -> Any:
    """As many as the width asks for; those of later stages keep their ratio to the first, where that is whole."""
    if not isinstance(heads, list | tuple):
        return scaled(heads, width)
    first = scaled(heads[0], width)
    whole = all(count % heads[0] == 0 for count in heads)
    return type(heads)(count // heads[0] * first if whole else scaled(count, width) for count in heads)


def _divided(channels: Any, width: float, multiple: int, heads: Any) -> Any:
    """Channels that their heads divide: one number for all stages is that of the first one."""
    if not isinstance(channels, list | tuple):
        first = heads[0] if isinstance(heads, list | tuple) else heads
        return scaled(channels, width, math.lcm(multiple, 4 * first))
    counts = heads if isinstance(heads, list | tuple) else [heads] * len(channels)
    return type(channels)(
        scaled(count, width, math.lcm(multiple, 4 * divisor)) for count, divisor in zip(channels, counts, strict=True)
    )


def _moved(positions: Any, depth: float) -> Any:
    """Positions of blocks, as far along the net as they were."""
    if isinstance(positions, list | tuple):
        return type(positions)(_moved(position, depth) for position in positions)
    return scaled(positions + 1, depth) - 1


def _holds_records(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_records, value))
    return isinstance(value, Mapping) or (is_dataclass(value) and not isinstance(value, type))


def _inside(value: Any, rule: Callable[[Arguments], Arguments]) -> Any:
    """Configurations, at whatever depth of lists, under a rule."""
    if isinstance(value, list | tuple):
        return type(value)(_inside(each, rule) for each in value)
    if isinstance(value, Mapping):
        return {**value, **rule(dict(value))}
    return replace(value, **rule(vars(value))) if _holds_records(value) else value


def grouped_by_channel(arguments: Arguments, width: float, depth: float) -> Arguments:
    """FastViT: a stage has a multiple of the channels before it, which are the groups of a convolution between them."""
    first, dims = arguments["embed_dims"][0], arguments["embed_dims"]
    wider = type(dims)(scaled(first, width, 8) * (dim // first) for dim in dims) if width != 1 else dims
    return named()(arguments, width, depth) | {"embed_dims": wider}


def cascading(arguments: Arguments, width: float, depth: float) -> Arguments:
    """EfficientViT of MSRA: every head has a kernel of its own."""
    changed = named()(arguments, width, depth)
    heads, kernels = max((arguments | changed)["num_heads"]), arguments["kernels"]
    return changed | {"kernels": repeated(kernels, max(heads, len(kernels)))}


def expanding(arguments: Arguments, width: float, depth: float) -> Arguments:
    """EfficientFormerV2: every block of a late stage has an expansion of its own."""
    changed = named()(arguments, width, depth)
    stages = zip(arguments["mlp_ratios"], (arguments | changed)["depths"], strict=True)
    ratios = (repeated(ratio, max(n, len(ratio))) if isinstance(ratio, tuple) else ratio for ratio, n in stages)
    return changed | {"mlp_ratios": tuple(ratios)}


def looking_far(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Hiera of SAM 2: some blocks see the whole image, as far along the net as before, but none that begins a stage."""
    changed = named()(arguments, width, depth)
    full = arguments | changed
    beginnings = {*accumulate(full["stages"])}
    return changed | {"global_att_blocks": tuple(n for n in full["global_att_blocks"] if n not in beginnings)}


def concatenating(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets that put the input of a stage beside its output: what a stage adds is scaled, so that it adds something."""
    added = (after - before for before, after in pairwise((0, *arguments["channels"])))
    return {
        "channels": tuple(accumulate(scaled(count, width, 4 * arguments["groups"]) for count in added)),
        "layers": tuple(scaled(count, depth) for count in arguments["layers"]),
    }


def inverted_residuals(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets that list the arguments of every block, and round channels by a function of their own: before they scale."""
    round_channels, stem = arguments["round_chs_fn"], arguments["stem_size"]

    def rounded(block: Arguments) -> Arguments:
        counts = {name: block[name] for name in ("out_chs", "force_in_chs") if block.get(name)}
        return block | {name: scaled(round_channels(count), width, 8) for name, count in counts.items()}

    return {
        "stem_size": scaled(stem if arguments["fix_stem"] else round_channels(stem), width, 8),
        "round_chs_fn": int,
        "num_features": scaled(arguments["num_features"], width, 8) if arguments["num_features"] else 0,
        "block_args": [
            [rounded(block) for block in repeated(stage, scaled(len(stage), depth))]
            for stage in arguments["block_args"]
        ],
    }


def repeated(stage: Any, count: int, period: int = 1) -> Any:
    """The first blocks of a stage and its last ones, `period` of them, these again where there are too few."""
    last, tail = len(stage) - period, count - period
    places = (i if i < min(tail, last) or i < period else last + (i - tail) % period for i in range(count))
    return type(stage)(copy.deepcopy(stage[i]) for i in places)


def own_blocks(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets of blocks that they bring: a stage is a block and a number, or a list of single blocks, by twos if even."""
    changed = named(blocks="d", fixed="width_factor")(arguments, width, depth)
    config: Any = changed.get("model_cfg", arguments["model_cfg"])
    blocks = type(config.blocks)(_fewer(_inside(stage, partial(_grouped, width)), depth) for stage in config.blocks)
    return {"model_cfg": replace(config, blocks=blocks)}


def _grouped(width: float, block: Arguments) -> Arguments:
    """The channels of a block, of which its groups take as many as before."""
    group = block["gs"] if isinstance(block["gs"], int) else 0
    least = (Fraction(group) / Fraction(block["br"]).limit_denominator(64)).numerator
    return {"c": scaled(block["c"], width, math.lcm(8, least or 1))}


def chained(arguments: Arguments) -> bool:
    """Whether a stage of own blocks begins with the channels of the one before it, so that they share one width."""
    stages = getattr(arguments.get("model_cfg"), "blocks", ())
    return any(isinstance(stage, list | tuple) and len({block.c for block in stage}) > 1 for stage in stages)


def _fewer(stage: Any, depth: float) -> Any:
    if not isinstance(stage, list | tuple) or any(block.d > 1 for block in stage):
        return stage
    period = 2 if len(stage) % 2 == 0 else 1
    return repeated(stage, scaled(len(stage), depth, period), period)


def ghosts(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets that list their blocks as numbers, with a factor on all channels."""
    stages = [repeated(stage, scaled(len(stage), depth)) for stage in arguments["cfgs"]]
    return {"width": arguments["width"] * width, "cfgs": stages}


def plain(arguments: Arguments, width: float, depth: float) -> Arguments:
    """VGG: a list of channels, stages parted by pools."""
    layers: list[int | str] = []
    for is_pool, stage in groupby(arguments["model_cfg"], lambda layer: layer == "M"):
        kept = list(stage)
        layers += kept if is_pool else [scaled(n, width, 8) for n in repeated(kept, scaled(len(kept), depth))]
    return {"model_cfg": layers}


def quantized_linear(arguments: Arguments, width: float, depth: float) -> Arguments:
    """RegNet: widths grow on a line that is cut into stages. A shorter line is steeper, so that it ends as wide.

    Where it would lose a stage it is as short as it may be, and rises as the first width does. Radosavovic et al.,
    Designing network design spaces, 2020.
    """
    from timm.models.regnet import generate_regnet

    config = arguments["model_cfg"]
    w0, group_size = scaled(config.w0, width, 8), scaled(config.group_size, width, 8)
    rise = width

    def line(length: int) -> tuple[float, int]:
        slope = config.wa * (config.depth - 1) / max(1, length - 1) * rise
        return slope, generate_regnet(slope, w0, config.wm, length, group_size)[1]

    if line(config.depth)[1] != generate_regnet(config.wa, config.w0, config.wm, config.depth, config.group_size)[1]:
        rise = w0 / config.w0
    count, blocks = line(config.depth)[1], scaled(config.depth, depth)
    while blocks < config.depth and line(blocks)[1] < count:
        blocks += 1
    stem = scaled(config.stem_width, width, 8)
    changed = replace(config, w0=w0, wa=line(blocks)[0], depth=blocks, group_size=group_size, stem_width=stem)
    return {"model_cfg": changed}


def listed_stages(arguments: Arguments, width: float, depth: float) -> Arguments:
    """HGNet: a stage is its channels (in, between, out), its blocks, what stays, and the layers of a block."""
    config = {"stem_chs": each(arguments["model_cfg"]["stem_chs"], width, 8)}
    for name, value in arguments["model_cfg"].items():
        if name.startswith("stage"):
            blocks, layers = nested(value[3], value[7], depth)
            config[name] = [*each(value[:3], width, 8), blocks, *value[4:7], layers]
    return {"model_cfg": arguments["model_cfg"] | config}


def nested(blocks: int, layers: int, depth: float) -> tuple[int, int]:
    """Blocks of a stage and layers of a block: a single block is what the stage keeps, so it has fewer layers."""
    return (scaled(blocks, depth), layers) if blocks > 1 else (blocks, scaled(layers, depth))


def aggregated(arguments: Arguments, width: float, depth: float) -> Arguments:
    """VoVNet: as many layers in every block."""
    config = arguments["model_cfg"]
    blocks = max(config["block_per_stage"])
    _, layers = nested(blocks, config["layer_per_block"], depth)
    return {"model_cfg": config | named()(config, width, depth if blocks > 1 else 1) | {"layer_per_block": layers}}


def rows(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Xception: a list of blocks, of which those that follow their like are a stage; one without its like is alone."""
    stages = [list(stage) for _, stage in groupby(arguments["block_cfg"])]
    kept = [block for stage in stages for block in repeated(stage, scaled(len(stage), depth) if len(stage) > 1 else 1)]
    first, *others = _inside(kept, lambda block: named()(block, width, 1))
    return {"block_cfg": [first | {"in_chs": kept[0]["in_chs"]}, *others]}  # what the stem gives, which is fixed


def attending(arguments: Arguments, width: float, depth: float) -> Arguments:
    """iFormer: the later stages end in groups of three blocks with attention."""
    changed = {"depths": arguments["depths"]} | named(blocks="attn_groups")(arguments, width, depth)
    groups: Any = changed.get("attn_groups", arguments["attn_groups"])
    return changed | {"depths": tuple(max(n, 3 * count) for n, count in zip(changed["depths"], groups, strict=True))}


def by_fives(arguments: Arguments, width: float, depth: float) -> Arguments:
    """NextViT: the third stage is groups of five blocks. Its channels stand in its constructor."""
    first, second, third, fourth = arguments["depths"]
    return {"depths": (*each((first, second), depth), scaled(third, depth, 5), scaled(fourth, depth))}


def transformer(arguments: Arguments, width: float, depth: float) -> Arguments:
    """A vision transformer. The convolutions that some begin with are kept, and projected to the new width."""
    changed = named()(arguments, width, depth)
    embed = arguments.get("embed_layer")
    if isinstance(embed, partial) and "embed_dim" in changed and not embed.keywords.get("proj", True):
        changed["embed_layer"] = partial(embed, proj=True)
    return changed


@dataclass(frozen=True)
class Family:
    """How the nets of one class are scaled, and made to suit small images.

    Attributes:
        scale: the rule.
        last: the stem is eased until the last map of a small image has this side.
        patched: the net takes patches of any size, so small images are cut into smaller ones.
        shared: axes, "width depth", on which all stages share one factor, whatever lists there are.
    """

    scale: Rule
    last: int = 4
    patched: bool = True
    shared: str = ""


_cifar = Family(named(multiple=2), last=2)
FAMILIES = {
    "ByobNet": Family(own_blocks),
    "CifarMobileNetV2": _cifar,
    "CifarResNet": _cifar,
    "CifarShuffleNetV1": Family(concatenating, last=2, shared="width"),
    "CifarShuffleNetV2": _cifar,
    "CifarTutorialNet": Family(named(multiple=2, channels="hidden"), last=2),
    "CifarVGG": _cifar,
    "CifarWideResNet": _cifar,
    "CoaT": Family(named(fixed="num_heads"), shared="width"),
    "ConVit": Family(named(fixed="num_heads")),
    "ConvNeXt": Family(named()),
    "DLA": Family(named(multiple=32)),
    "DPN": Family(named(multiple="groups")),
    "EfficientNet": Family(inverted_residuals),
    "EfficientFormerV2": Family(expanding),
    "EfficientVitMsra": Family(cascading),
    "FastVit": Family(grouped_by_channel, shared="width"),
    "GhostNet": Family(ghosts),
    "HieraDet": Family(looking_far, shared="depth"),
    "HighPerfGpuNet": Family(listed_stages, shared="width depth"),
    "HighResolutionNet": Family(named(fixed="num_channels num_modules stem_width")),
    "IFormer": Family(attending),
    "LCNetV2": Family(named(scale="width")),
    "MaxxVit": Family(named(multiple=32)),
    "MobileNetV3": Family(inverted_residuals),
    "MobileNetV5": Family(inverted_residuals),
    "NASNetALarge": Family(named(multiple=96)),
    "NextViT": Family(by_fives),
    "PoolingVisionTransformer": Family(named(fixed="heads"), shared="width"),
    "RegNet": Family(quantized_linear),
    "RepGhostNet": Family(ghosts),
    "ResNet": Family(named()),
    "SelecSls": Family(named(fixed="num_features")),
    "VGG": Family(plain, shared="width depth"),
    "Visformer": Family(named(), patched=False),
    "VOLO": Family(named(), shared="width"),
    "VovNet": Family(aggregated),
    "VisionTransformer": Family(transformer),
    "VisionTransformerDistilled": Family(transformer),
    "XceptionAligned": Family(rows, shared="width depth"),
    "Xcit": Family(named(), patched=False),
}
"""By the name of the model's class."""

OTHERS = Family(named())
"""The rule of a class that is not in the table."""


def not_scaled(name: str, width: Factors, depth: Factors, why: str) -> InputError:
    field, factor = ("width", width) if width != 1 else ("depth", depth)
    return InputError(f"student.{field}", factor, f"{name} cannot be scaled so: {why}")
