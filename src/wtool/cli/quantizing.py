"""A quantization in its steps: what is asked for, what becomes of each tensor, the output, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from json import dumps
from typing import TYPE_CHECKING, Any

from wtool.cli import hf_config, options
from wtool.cli.dequantizing import KEY, QUANTIZATION, dequantized, opened
from wtool.cli.pruning import lost
from wtool.errors import NoTensorsError, NotFiniteError, QuantizedError, UsageError
from wtool.sizes import parse_size

if TYPE_CHECKING:
    from wtool.analysis.damage import Damage
    from wtool.api import SavePlan, SaveReport
    from wtool.bytesource import ByteSource
    from wtool.cli.console import Console
    from wtool.layout import Layout, Scheme, Seen
    from wtool.ops.quantize import Fate
    from wtool.tensor import LazyTensor

# What a budget chooses from, unless it is told: what the layout's runtimes compute with.
LADDERS = {
    "compressed-tensors": ("int4:g128", "int4:g32", "int8:channel"),
    "gguf": ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"),
    "mlx": ("int2:g64", "int3:g64", "int4:g64", "int4:g32", "int8:g64"),
    "gptq": ("int4:g128", "int4:g32", "int8:g128"),
    "awq": ("int4:g128", "int4:g32"),
    "bnb": ("nf4", "int8"),
    "plain": ("int2:g64", "int3:g64", "int4:g64", "int4:g32", "int8:channel"),
}
_OF_SCHEME = {"nf4": "bnb", "nf4-nested": "bnb", "fp4": "bnb"}


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that say what to do, as they were given."""

    scheme: str | None
    layout: str | None = None
    group: str | None = None
    asymmetric: bool = False
    method: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    scheme_for: tuple[str, ...] = ()
    rest: str | None = None
    fit: str | None = None
    bits: float | None = None
    candidates: str | None = None

    def told(self) -> dict[str, Any]:
        """Those that were given."""
        names: tuple[str, ...] = ("scheme", "layout", "group", "asymmetric", "method", "only", "skip", "scheme_for", "rest")
        names += ("fit", "bits", "candidates")
        found = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value}


class Quantizing:
    """A source that is open, and what is to become of it."""

    def __init__(
        self,
        src: str,
        dst: str,
        asked: Asked,
        console: Console,
        *,
        section: str | None = None,
        to: str | None = None,
        jobs: int | None = None,
        requantize: bool = False,
    ) -> None:
        from wtool.formats import registry as formats
        from wtool.layouts import registry

        self.src, self.dst, self.asked, self.console, self.to = src, dst, asked, console, to
        self.jobs = options.worker_count(jobs)
        self.target = formats.for_target(dst, to)
        self.layout = self._layout()
        self.schemes_asked = self._ladder()
        self.whole, self.config = opened(src, "all")
        self.part = self.whole.section(section)
        for warning in self.part.warnings:
            console.warn(warning.message, src)
        there = registry.find(self.part.tensors, self.config, self.part.metadata)
        said = next((name for name in QUANTIZATION if self.config and self.config.get(name)), None)
        if (there or said) and not requantize:
            first = next(iter(there.values()), None)
            how = f"{first.layout} {first.scheme}, {len(there):,} tensors" if first else f"config.json has a {said}"
            hint = "--requantize decodes it first, and loses twice; `wtool convert --dequantize` gives plain numbers"
            raise QuantizedError(f"is quantized already: {how}", path=src, hint=hint)
        if said and not there:
            raise QuantizedError(f"config.json has a {said}, and no tensor is of a layout that wtool knows", path=src)
        if there:
            self.part, _ = dequantized(self.part, self.config)
        self.fates: list[Fate] = []
        self.seen: dict[str, Seen] = {}
        self.allowed: dict[str, list[Scheme]] = {}  # what a budget may choose from
        self.beside: dict[str, ByteSource] = {}
        self.left_out: list[str] = []

    def _layout(self) -> Layout:
        from wtool.layouts import registry

        name = self.asked.layout
        if name is None:
            base = (self.asked.scheme or self.asked.candidates or "").partition(":")[0]
            usual = _OF_SCHEME.get(base) or ("gguf" if base.startswith("q") else "compressed-tensors")
            name = {"gguf": "gguf", "safetensors": usual}.get(self.target.name, "plain")
        layout = registry.layout(name)
        if not layout.formats:
            raise UsageError(f"the layout '{name}' is only read", hint="one of " + ", ".join(registry.names()))
        if self.target.name not in layout.formats:
            hint = f"--layout plain, or a target that is {' or '.join(layout.formats)}"
            raise UsageError(f"the layout '{name}' is not one of {self.target.name}", path=self.dst, hint=hint)
        return layout

    def _scheme(self, text: str) -> Scheme:
        from wtool.layout import CASTS, METHODS, parse_scheme

        asked, scheme = self.asked, parse_scheme(text)
        if asked.group is not None and scheme.group is None:
            scheme = replace(scheme, group=parse_scheme(f"int4:{asked.group}").group)
        if asked.asymmetric:
            scheme = replace(scheme, symmetric=False)
        if asked.method is not None and scheme.method is None:
            if asked.method not in METHODS:
                raise UsageError(f"there is no method '{asked.method}'", hint="one of " + ", ".join(METHODS))
            scheme = replace(scheme, method=asked.method)
        return scheme if scheme.name in CASTS else self.layout.settle(scheme)

    def _ladder(self) -> list[Scheme]:
        """The one scheme that was asked for, or those that a budget may choose from."""
        asked = self.asked
        if asked.scheme is not None:
            return [self._scheme(asked.scheme)]
        if asked.candidates is not None:
            return [self._scheme(text.strip()) for text in asked.candidates.split(",")]
        return [self._scheme(text) for text in LADDERS[self.layout.name]]

    def choose(self, *, keep_odd: bool = False, dry_run: bool = False) -> None:
        """Say of every tensor what becomes of it; look at values where that is needed."""
        from wtool.cli.unstacking import unstacked
        from wtool.layout import CASTS
        from wtool.layouts.codecs import as_f32
        from wtool.ops.quantize import Fate, Rules, allowed, fates

        ruled = tuple(map(self._ruled, self.asked.scheme_for))
        experts = hf_config.expert_counts(self.config)
        rules = [Rules(one, ruled, self.asked.only, self.asked.skip, experts) for one in self.schemes_asked]
        self.part = unstacked(self.part, rules, self.layout)
        main = self.part.main_section()
        here = {key: self.part[key] for key in main.keys}
        found = fates(here, rules[0], self.layout)
        if self.asked.scheme is None:
            self.allowed = allowed(here, rules, self.layout)
            first = {key: schemes[0] for key, schemes in self.allowed.items() if schemes}
            found = [Fate(fate.key, first.get(fate.key), "" if fate.key in first else fate.why) for fate in found]
        others = [Fate(key, None, f"not of section {main.name}") for key in self.part if key not in set(main.keys)]
        self.fates = [*found, *others]
        chosen = {fate.key: fate.scheme for fate in found if fate.scheme is not None and fate.scheme.name not in CASTS}
        if not any(fate.scheme for fate in found):
            whys = Counter(fate.why for fate in found)
            said = ", ".join(f"{why} ({count:,})" for why, count in whys.most_common(4)) or "there are none"
            raise NoTensorsError(f"no tensor is to be quantized: {said}", path=self.src, hint="--only GLOB names keys")
        wanted = {key for key, one in chosen.items() if any(map(self.layout.wants, self.allowed.get(key) or [one]))}
        look = {key: as_f32(self.part[key]) for key in chosen if key in wanted or keep_odd}
        if dry_run:
            from wtool.layout import Seen

            self.seen = {key: Seen(1.0, 1.0) for key in wanted}
        elif look:
            self._look(look, wanted, keep_odd)

    def _look(self, tensors: Mapping[str, LazyTensor], wanted: set[str], keep_odd: bool) -> None:
        from wtool.analysis.seen import seen
        from wtool.ops.quantize import Fate, agreed, fused_sets

        odd: set[str] | None = set() if keep_odd else None
        with self.console.progress("looking", sum(tensor.nbytes for tensor in tensors.values())) as advance:
            try:
                self.seen = seen(tensors, self.jobs, advance, odd=odd)
            except NotFiniteError as error:
                raise error.at(self.src) from None
        if odd:
            kept = (Fate(one.key, None, "holds NaN or an infinity") if one.key in odd else one for one in self.fates)
            self.fates = agreed(list(kept))
        for group in fused_sets([key for key in tensors if key in wanted], experts=False):
            largest = max(self.seen[key].largest for key in group)
            for key in group:
                self.seen[key] = replace(self.seen[key], largest=largest)

    def _ruled(self, text: str) -> tuple[str, Scheme | None]:
        glob, sign, name = text.rpartition("=")
        if not sign or not glob:
            raise UsageError(f"'{text}' is no rule", hint="--scheme-for 'GLOB=int8', or 'GLOB=none'")
        return glob, None if name == "none" else self._scheme(name)

    @property
    def schemes(self) -> dict[str, Scheme]:
        return {fate.key: fate.scheme for fate in self.fates if fate.scheme is not None}

    def plan(self, *, max_shard: str | None, force: bool, strict: bool) -> SavePlan:
        """Lay the output out."""
        from wtool.api import plan_save
        from wtool.layout import CASTS
        from wtool.ops.quantize import Quantize

        coded = {key: scheme for key, scheme in self.schemes.items() if scheme.name not in CASTS}
        made = Quantize(self.layout, self.schemes, self.seen, self.asked.rest)(self.part)
        told: dict[str, str] = {}
        if self.target.capabilities.metadata and coded:
            short = {name: sum(str(one) == name for one in coded.values()) for name in dict.fromkeys(map(str, coded.values()))}
            told = {KEY: dumps({"layout": self.layout.name, "schemes": short}, separators=(",", ":"))}
            told |= self.layout.metadata(coded)
        plan = plan_save(
            made,
            self.dst,
            to=self.to,
            whole=self.whole,
            metadata=told,
            max_shard=None if max_shard is None else parse_size(max_shard),
            force=force,
            strict=strict,
        )
        if plan.folder is not None and self.config is not None:
            kept = [one.key for one in self.fates if one.key not in coded and len(self.part[one.key].shape) in (2, 3)]
            plain = {name: value for name, value in self.config.items() if name not in QUANTIZATION}
            config = plain | (self.layout.config(coded, kept) if coded else {})  # a cast is no quantization
            self.beside, self.left_out = hf_config.files_beside(self.src, config, self.dst)
        return plan

    def write(self, plan: SavePlan, memory: str | None) -> SaveReport:
        from wtool.api import save

        bound = None if memory is None else parse_size(memory)
        with self.console.progress("writing", sum(job.nbytes for job in plan.plan.jobs)) as advance:
            try:
                return save(plan, jobs=self.jobs, memory=bound, progress=advance, beside=self.beside)
            except NotFiniteError as error:
                raise error.at(self.src) from None

    def measure(self, plan: SavePlan) -> dict[str, Damage]:
        """Read what was written, decode it, and compare: key -> damage. QuantizedError where it does not come back."""
        from wtool.analysis.damage import damage
        from wtool.layout import CASTS
        from wtool.layouts import registry
        from wtool.layouts.codecs import as_f32

        there, config = opened(plan.target, "all")
        found = registry.find(there.tensors, config, there.metadata)
        pairs = {}
        for key, scheme in self.schemes.items():
            if scheme.name in CASTS:
                one = there.get(key)
                dense = None if one is None else as_f32(one)
            else:
                stored = found.get(key)
                dense = None if stored is None else stored.dense()
            if dense is None or dense.shape != self.part[key].shape:
                raise QuantizedError(f"'{key}' does not come back from what was written", path=plan.target)
            pairs[key] = (as_f32(self.part[key]), dense)
        with self.console.progress("measuring", sum(one.nbytes for one, _ in pairs.values())) as advance:
            return damage(pairs, self.jobs, advance)

    def notes(self, plan: SavePlan, *, future: bool) -> list[str]:
        """What a person should know besides."""
        losses = list(plan.losses)
        found = lost(losses, future=future)
        if self.left_out:
            found.append(f"not copied, too large: {', '.join(self.left_out)}")
        if plan.folder is None and self.config is not None and self.layout.name != "gguf":
            found.append("a file has no room for config.json: a folder as the target takes it, and all small files, along")
        return found
