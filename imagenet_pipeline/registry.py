"""Tables of what can be asked for by name, open to other packages: networks, optimizers, builders, loggers.

A name is shipped here, registered by a call (`imagenet_pipeline.register_network(...)`), or offered by an installed
package as an entry point of the table's group, in its pyproject.toml:

    [project.entry-points."imagenet_pipeline.networks"]
    mobilenet = "my_package.mobilenet:entry"

Entry points are imported when their name is asked for, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from typing import Generic, TypeVar

from imagenet_pipeline.errors import BadRecipe, did_you_mean, printable

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items by name: a table shipped with this package, plus those of other packages."""

    def __init__(
        self,
        what: str,
        plural: str,
        shipped: Mapping[str, Item],
        kind: type | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        """`what` and `plural` name the items in messages ("network", "networks"); `kind` is checked, if given.

        `modules` are shipped items by where they lie, "package.module:name", imported when they are asked for.
        """
        self._what, self._plural, self._kind = what, plural, kind
        self._items = dict(shipped)
        self._modules = dict(modules or {})
        self._shipped = dict.fromkeys([*shipped, *self._modules])

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=f"imagenet_pipeline.{self._plural}")}

    def register(self, name: str, item: Item) -> None:
        """Add an item; the same name again replaces it. Raises BadRecipe for a shipped name, or another type."""
        if self._kind is not None and not isinstance(item, self._kind):
            what = f"the {self._what} is of another type"
            raise BadRecipe(what, where=repr(name), expected=self._kind.__name__, found=type(item).__name__)
        if name in self._shipped or not name or printable(name) != name:
            article = "an" if self._what[0] in "aeiou" else "a"
            what = f"cannot register {article} {self._what} under this name"
            raise BadRecipe(what, where=repr(name), expected="a printable name that is not shipped")
        self._items[name] = item

    def names(self) -> tuple[str, ...]:
        """Every name: shipped, then registered, then offered by entry points."""
        return tuple(dict.fromkeys([*self._shipped, *self._items, *self._entry_points]))

    def __contains__(self, name: object) -> bool:
        return name in self._shipped or name in self._items or name in self._entry_points

    def get(self, name: str, where: object = None, otherwise: str | None = None) -> Item:
        """The item called `name`.

        Raises BadRecipe (at `where`) with the nearest names if there is none, and for an entry point that cannot be
        imported or is something else.
        """
        if name in self._items:
            return self._items[name]
        if name in self._modules:
            module, _, attribute = self._modules[name].partition(":")
            self._items[name] = getattr(importlib.import_module(module), attribute)
            return self._items[name]
        if name not in self._entry_points:
            advice = did_you_mean(name, self.names(), otherwise or f"there are {', '.join(self.names())}")
            raise BadRecipe(f"no {self._what} is called {name!r}", where=where or self._what, advice=advice)
        self._items[name] = self._loaded(self._entry_points[name])
        return self._items[name]

    def _loaded(self, point: metadata.EntryPoint) -> Item:
        package = f"package {point.dist.name} {point.dist.version}" if point.dist else "an installed package"
        where = f"{self._what} {point.name!r} of {package}"
        try:
            item: Item = point.load()
        except Exception as error:
            what = f"the entry point {point.value!r} cannot be imported ({type(error).__name__}: {error})"
            raise BadRecipe(what, where=where, advice="mend that package, update it or uninstall it") from error
        if self._kind is not None and not isinstance(item, self._kind):
            what = f"the entry point {point.value!r} is of another type"
            raise BadRecipe(what, where=where, expected=self._kind.__name__, found=type(item).__name__)
        return item
