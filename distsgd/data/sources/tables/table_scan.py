"""One look through a table for what its header doesn't say: texts, means, and rows that lack a value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.columns import MOST_FEATURES
from distsgd.data.sources.missing import Lacking, Sums
from distsgd.data.sources.tables.arrow_columns import numbers_of, texts_in
from distsgd.data.sources.tables.table_plan import Plan

MOST_CATEGORIES = 1000
"""Texts of one column of inputs."""
MOST_CLASSES = 65_536
"""Texts of targets."""
MOST_GROUPS = 1 << 22
"""Texts of groups."""
_LONGEST = 1000
"""Characters of a category."""
_MARKED = re.compile(r"[-+]?[$€£]? ?(\d{1,3}([,.'’ \u00a0\u202f]\d{3})+([.,]\d+)?|\d+,\d+|\d+([.,]\d+)?)( ?[%€$£])?")
"""A number with marks of thousands, a decimal comma, or a sign of percent or of a currency."""


@dataclass
class Scan:
    """What is found of a table while its batches go by, in the order of their rows."""

    where: str
    plan: Plan
    missing: str
    texts: dict[str, set[str]] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    lacking: Lacking = field(init=False)

    def __post_init__(self) -> None:
        self.lacking = Lacking(self.where)

    @classmethod
    def of(cls, where: str, plan: Plan, missing: str) -> Scan | None:
        """None where the header says all."""
        known = plan.columns.categories
        texts = [one.name for one in plan.inputs if one.kind == "text" and not plan.fixed and one.name not in known]
        texts += [one.name for one in plan.target if one.kind == "text" and not plan.class_names]
        texts += [plan.group.name] if plan.group is not None and plan.group.kind == "text" else []
        kind = missing if not plan.fixed else "drop" if plan.columns.missing == "drop" else "refuse"
        if not texts and kind not in ("mean", "drop"):
            return None
        return cls(where, plan, kind, {name: set() for name in texts})

    def visit(self, first: int, batch: Any) -> None:
        """Looks at a record batch whose first row has this number."""
        there = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name, found in self.texts.items():
            if name in there:
                found.update(texts_in(there[name]))
                if len(found) > MOST_GROUPS:
                    raise DataError(
                        f"{self.where}: column {name} holds more than {MOST_GROUPS:,} different texts; leave it out"
                    )
        if self.missing == "mean":
            for one in self.plan.inputs:
                if one.name in there and one.kind != "text":
                    column = there[one.name]
                    values = numbers_of(column, one, self.where).reshape(len(column), max(1, one.width))
                    self.sums.setdefault(one.name, Sums(values.shape[1])).add(values)
        elif self.missing == "drop":
            self._find(first, there)

    def _find(self, first: int, there: dict[str, Any]) -> None:
        fields = {one.name: one for one in (*self.plan.inputs, *self.plan.target)}
        fields |= {one.name: one for one in (self.plan.weights, self.plan.group) if one is not None}
        for name, column in there.items():
            if name not in fields:
                continue
            one = fields[name]
            if one.kind == "text" or one.is_integer:
                if column.null_count:
                    self.lacking.add(first, column.is_null().to_numpy(zero_copy_only=False))
            else:
                values = numbers_of(column, one, self.where)
                if values.dtype.kind == "f":
                    self.lacking.add(first, np.logical_or.reduce(np.isnan(values.reshape(len(values), -1)), axis=1))

    def found(self, plan: Plan, rows: int) -> tuple[Plan, Array]:
        """The plan with what was found, and the rows that are dropped of so many."""
        if not plan.fixed:
            plan = self._with_texts(plan)
            if self.missing == "mean":
                plan = replace(plan, columns=replace(plan.columns, fill=self._means(plan)))
        return plan, self.lacking.dropped(rows)

    def _with_texts(self, plan: Plan) -> Plan:
        categories, features = {}, sum(max(1, one.width) for one in plan.inputs if one.kind != "text")
        for one in plan.inputs:
            if one.kind == "text":
                categories[one.name] = _sorted(self.where, one.name, self.texts[one.name], MOST_CATEGORIES, "inputs")
                features += len(categories[one.name])
                refuse_numbers(self.where, one.name, categories[one.name], "leave the column out with --x")
        if features > MOST_FEATURES:
            raise DataError(f"{self.where}: expected at most {MOST_FEATURES:,} features, texts as columns of their own "
                            f"make {features:,}; name fewer columns with --x")  # fmt: skip
        plan = replace(plan, columns=replace(plan.columns, categories=categories))
        if plan.group is not None and plan.group.kind == "text":
            groups = _sorted(self.where, plan.group.name, self.texts[plan.group.name], MOST_GROUPS, "groups")
            plan = replace(plan, groups=groups)
        if plan.target and plan.target[0].kind == "text" and not plan.class_names:
            name = plan.target[0].name
            names = _sorted(self.where, name, self.texts[name], MOST_CLASSES, "classes")
            if len(names) < 2:
                raise DataError(
                    f"{self.where}: column {name}: expected the names of two classes or more, got {names[0]!r} alone; "
                    "name another target with --y"
                )
            refuse_numbers(self.where, name, names, "name another target with --y")
            plan = replace(plan, class_names=names)
        return plan

    def _means(self, plan: Plan) -> tuple[float, ...]:
        """One number a feature: the mean of the values that are there, and 0 of texts."""
        found: list[float] = []
        for one in plan.inputs:
            if one.kind == "text":
                found += [0.0] * len(plan.columns.categories[one.name])
                continue
            found += self.sums[one.name].means(self.where, one.name)
        return tuple(found)


def refuse_numbers(where: str, name: str, texts: tuple[str, ...], remedy: str) -> None:
    """DataError where all texts are numbers with marks that no program reads alike: 1,234 or 3%."""
    if all(map(_MARKED.fullmatch, texts)) and not all(one.lstrip("+-").replace(".", "", 1).isdigit() for one in texts):
        raise DataError(
            f"{where}: column {name}: expected numbers or text, got numbers with marks, such as {texts[0]!r}; write "
            f"them without, as 1234 or 0.03, or {remedy}; a letter before each makes them text"
        )


def _sorted(where: str, name: str, texts: set[str], most: int, what: str) -> tuple[str, ...]:
    """Texts by their code points."""
    if len(texts) > most:
        raise DataError(
            f"{where}: column {name} holds {len(texts):,} different texts, at most {most:,} can be {what}; leave it "
            "out, or put them into fewer groups"
        )
    if not texts:
        raise DataError(f"{where}: column {name} holds no text; leave it out")
    if len(long := max(texts, key=len)) > _LONGEST:
        raise DataError(
            f"{where}: column {name}: expected texts of at most {_LONGEST:,} characters, one has {len(long):,}; "
            "shorten it, or leave the column out"
        )
    return tuple(sorted(texts))
