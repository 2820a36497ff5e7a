"""The strategies that are there: the built-in ones and those of installed packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

import pluggy
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .. import __version__
from ..settings import ESTIMATORS
from . import strategy as hooks
from .strategies import BUILT_IN
from .strategy import GROUP, Needs, Options, Problem, Strategy


class StrategyError(ValueError):
    """A strategy that cannot be used; the message names it, and its package where that matters."""


@dataclass(frozen=True)
class Registered:
    """A strategy that can be used.

    Attributes:
        strategy: What it says about itself.
        package: Name and version of the package that it is from.
    """

    strategy: Strategy
    package: str
    _plugin: Any
    _manager: pluggy.PluginManager

    @property
    def built_in(self) -> bool:
        """Whether it is one of ours."""
        return self._plugin in BUILT_IN

    def options(self, given: Mapping[str, Any]) -> Options:
        """Check options and fill in the defaults.

        Raises:
            StrategyError: If an option is unknown or its value is wrong; names it.
        """
        try:
            found = self.strategy.options.model_validate(dict(given))
        except ValidationError as error:
            raise StrategyError(self._in_words(error, given)) from error
        if found.order != "scores" and not self.scored:
            raise StrategyError(
                f"strategy {self.strategy.name!r} goes by no scores, which order: {found.order} "
                "could deal otherwise: leave out order"
            )
        return found

    @property
    def scored(self) -> bool:
        """Whether it has a `score` hook."""
        return self._has("score")

    @property
    def allocates(self) -> bool:
        """Whether it has an `allocate` hook, so that its scores are no shares of the budget."""
        return self._has("allocate")

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """Its options: its own ones, then those of every strategy with scores if it has any."""
        shared = Options.model_fields if self.scored else {}
        return {**self.strategy.options.own_fields(), **shared}

    def score(self, problem: Problem) -> dict[str, float]:
        """Call the strategy's `score` hook; empty if it has none.

        Raises:
            TypeError: If it returns something else than a mapping.
        """
        return self._call("score", problem=problem)

    def allocate(self, problem: Problem, scores: Mapping[str, float]) -> dict[str, int]:
        """Call the strategy's `allocate` hook; without one, spend in proportion to the scores.

        Raises:
            TypeError: If it returns something else than a mapping.
        """
        if self.allocates:
            return self._call("allocate", problem=problem, scores=scores)
        if not scores:
            raise ValueError("its score hook returned no scores, and it has no allocate hook")
        return problem.spend(scores)

    def _has(self, hook: str) -> bool:
        callers = self._manager.get_hookcallers(self._plugin) or []
        return any(caller.name == hook for caller in callers)

    def _call(self, hook: str, **arguments: Any) -> dict[str, Any]:
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not self._plugin]
        found = self._manager.subset_hook_caller(hook, others)(**arguments)
        if found is not None and not isinstance(found, Mapping):
            raise TypeError(f"its {hook} hook returned {found!r}, which is no mapping")
        return dict(found or {})

    def _in_words(self, error: ValidationError, given: Mapping[str, Any]) -> str:
        name, fields = self.strategy.name, self.fields
        lines = []
        by_option: dict[str, list[Any]] = {}
        for item in error.errors():
            by_option.setdefault(".".join(str(part) for part in item["loc"][:1]), []).append(item)
        for option, items in by_option.items():
            item = items[0]
            if len(items) > 1 and option in fields and fields[option].description:
                # An error for each of the types that it may have, or each element of a list.
                wanted = fields[option].description
                lines.append(
                    f"option {option!r} of strategy {name!r} should be {wanted}, "
                    f"not {given.get(option)!r}"
                )
            elif item["type"] == "extra_forbidden":
                known = ", ".join(fields) or "none"
                lines.append(f"strategy {name!r} has no option {option!r}: it takes {known}")
            elif not option:
                lines.append(f"strategy {name!r}: {item['msg'].removeprefix('Value error, ')}")
            else:
                said = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
                lines.append(
                    f"option {option!r} of strategy {name!r} {said}, not {item['input']!r}"
                    if item["type"] != "value_error"
                    else f"option {option!r} of strategy {name!r}: {said}"
                )
        return "; ".join(lines)


class Registry:
    """All strategies by name. One that is broken is an error when it is asked for, not before.

    Args:
        installed: The entry points to load; those of the installed packages if None.
    """

    def __init__(self, installed: list[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hooks)
        self._found: dict[str, list[Registered]] = {}
        self.problems: list[str] = []
        for module in BUILT_IN:
            self._add(module, f"axolotl-alphalora {__version__}", module.__name__)
        for entry in entry_points(group=GROUP) if installed is None else installed:
            self._load(entry)

    def names(self) -> list[str]:
        """Names of the strategies, sorted."""
        return sorted(self._found)

    def get(self, name: str) -> Registered:
        """Return a strategy by name.

        Raises:
            StrategyError: If there is none of that name, or there are several.
        """
        found = self._found.get(name, [])
        if len(found) > 1:
            packages = " and ".join(one.package for one in found)
            raise StrategyError(
                f"the strategy {name!r} is in {packages}: uninstall one of these packages"
            )
        if not found:
            hint = "".join(f". {problem}" for problem in self.problems)
            if name in ESTIMATORS:
                hint = f". {name} is an estimator of alphalora: write alphalora:{name}{hint}"
            raise StrategyError(
                f"unknown strategy {name!r}: choose one of {', '.join(self.names())}{hint}"
            )
        return found[0]

    def _load(self, entry: EntryPoint) -> None:
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            plugin = entry.load()
        except Exception as error:
            self.problems.append(
                f"{package}: its strategy {entry.name!r} ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}"
            )
            return
        self._add(plugin, package, f"{package} {entry.name}")

    def _add(self, plugin: Any, package: str, key: str) -> None:
        name = key.rpartition(" ")[2]
        if self._manager.is_registered(plugin) or self._manager.has_plugin(key):
            self.problems.append(f"{package}: {name} is a strategy that is there already")
            return
        try:
            self._manager.register(plugin, key)
            self._manager.check_pending()
            strategy = self._manager.subset_hook_caller(
                "register_strategy", [p for p in self._manager.get_plugins() if p is not plugin]
            )()
            found = Registered(strategy, package, plugin, self._manager)
            _check(found)
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            said = " ".join(str(error).split())
            self.problems.append(f"{package}: {name} is no strategy: {said}")
            return
        self._found.setdefault(strategy.name, []).append(found)

    def read(self, text: str) -> dict[str, Any]:
        """Read `name` or `name:value`, the short form of a strategy with one option.

        Args:
            text: Such as `mola:2468`; the value is read as in YAML.

        Returns:
            `strategy`, and the option if there is one.

        Raises:
            StrategyError: If the strategy is unknown or has no short form, or the value is none.
        """
        name, colon, value = text.partition(":")
        if not colon:
            return {"strategy": name}
        strategy = self.get(name).strategy
        option = strategy.shorthand
        if option is None:
            advice = f"write {{strategy: {name}, option: value}}"
            if not strategy.options.own_fields():
                advice = f"it takes no options, so write {name}"
            raise StrategyError(f"{text!r}: strategy {name!r} has no short form; {advice}")
        try:
            return {"strategy": name, option: read_value(value)}
        except ValueError as error:
            raise StrategyError(f"{text!r}: {error}") from error


def read_value(text: str) -> Any:
    """Read the value of an option as in YAML, but digits after a 0 as text: 0246 is a shape.

    Raises:
        ValueError: If it is none.
    """
    text = text.strip()
    if re.fullmatch(r"0\d+", text):
        # YAML would read an octal number.
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value") from error


@cache
def registry() -> Registry:
    """Return the strategies of this process."""
    return Registry()


def _check(found: Registered) -> None:
    strategy = found.strategy
    if not isinstance(strategy, Strategy):
        raise TypeError(f"register_strategy must return a Strategy, not {strategy!r}")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", strategy.name):
        raise ValueError(f"its name is {strategy.name!r}: letters, digits, _ and - are allowed")
    if strategy.needs not in get_args(Needs):
        raise ValueError(f"needs is {strategy.needs!r}: it is one of {', '.join(get_args(Needs))}")
    if not (isinstance(strategy.options, type) and issubclass(strategy.options, Options)):
        raise TypeError(f"options must be a subclass of Options, not {strategy.options!r}")
    for name, shared in Options.model_fields.items():
        if repr(strategy.options.model_fields[name]) != repr(shared):
            raise ValueError(f"its option {name!r} is one that all strategies have: rename it")
    if strategy.shorthand is not None and strategy.shorthand not in strategy.options.model_fields:
        raise ValueError(f"shorthand {strategy.shorthand!r} is none of its options")
    if not (found._has("score") or found._has("allocate")):
        raise ValueError("it has neither a score hook nor an allocate hook")
    strategy.options()
