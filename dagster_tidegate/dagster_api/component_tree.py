"""The other definitions of a project, for a component that is one of them."""

from collections.abc import Iterator

import dagster as dg
from dagster.components.core.decl import ComponentDecl


def definitions_beside(context: dg.ComponentLoadContext) -> dg.Definitions:
    """Return everything that the other components and modules of a defs folder define.

    Dagster keeps what is built, so that it is not built twice.
    """
    tree = context.component_tree
    beside = _beside(tree.find_root_decl(), context)
    return dg.Definitions.merge(*(tree.build_defs_at_path(decl.loc) for decl in beside))


def _beside(decl: ComponentDecl, context: dg.ComponentLoadContext) -> Iterator[ComponentDecl]:
    own = context.component_loc
    if decl.loc == own:
        return
    if any(loc == own for loc, _ in decl.iterate_loc_component_decl_pairs()):
        for child in decl.iterate_child_component_decls():
            yield from _beside(child, context)
    else:
        yield decl
