"""From a template's name and a request about the network to what a sandbox is made of."""

from __future__ import annotations

from dataclasses import replace

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local._config import EngineConfig
from sandboxkit.local.control._network import Network, NetworkRequest, check_request, decide, wants_packages
from sandboxkit.local.control._parts import Recipe
from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._states import Wanted
from sandboxkit.local.control._templates import Templates
from sandboxkit.local.control.volumes._rules import Mounted
from sandboxkit.local.control.volumes._volumes import Volumes
from sandboxkit.local.images import BuiltTemplate
from sandboxkit.local.indexes import KnownIndexes


class Recipes:
    """What this engine makes sandboxes of."""

    def __init__(self, *, config: EngineConfig, templates: Templates, indexes: KnownIndexes, volumes: Volumes) -> None:
        self._config = config
        self._templates = templates
        self._indexes = indexes
        self.volumes = volumes

    def known(self) -> tuple[str, ...]:
        """Name the templates, built or not."""
        return self._templates.known()

    def template(self, name: str) -> BuiltTemplate:
        """Find a built template. Refused: 404, 400 where it is not built."""
        try:
            return self._templates.find(name)
        except TemplateNotFound as error:
            raise Refused(404, str(error), error_code=error.code) from error
        except TemplateNotBuilt as error:
            raise Refused(400, str(error), error_code=error.code) from error

    async def network(self, request: NetworkRequest) -> Network:
        """Decide what a request gets, learning the package indexes where that depends on them. Refused: 400."""
        default, ceiling = self._config.internet, self._config.ceiling
        check_request(request, ceiling=ceiling)
        endpoints: frozenset[tuple[str, int]] = frozenset()
        hosts = await self._indexes.hosts() if request.allow else set()
        if wants_packages(request, default=default, ceiling=ceiling, index_hosts=hosts):
            endpoints = (await self._indexes.get()).endpoints
        return decide(request, default=default, ceiling=ceiling, endpoints=endpoints)

    async def again(self, wanted: Wanted) -> tuple[Network, Recipe]:
        """What one that was made before is made of now: the template may have been built anew, and this engine may
        allow less than the one that made it. Refused: as for `template` and `network`."""
        template = self.template(wanted.built_from or wanted.template_id)
        network = await self.network(wanted.network.asked)
        return network, await self.with_volumes(recipe_of(template), wanted.volumes)

    async def with_volumes(self, recipe: Recipe, mounted: tuple[Mounted, ...]) -> Recipe:
        """Add volumes to it. Refused: 404 where one is not there any more, 507 for a full one."""
        await self.volumes.check_room(mounted)
        return replace(recipe, volumes=self.volumes.layers(mounted))


def recipe_of(template: BuiltTemplate) -> Recipe:
    """What a template contributes to a box."""
    return Recipe(
        layers=template.layers,
        overlays=template.overlays,
        envs=template.envs,
        has_environment=template.has_environment,
        workdir=template.workdir,
        start=template.start,
        ready=template.ready,
    )
