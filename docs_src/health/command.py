from fastapi_lifespan_deps import LifespanContainer

from .details import app

container = LifespanContainer.for_app(app)


async def doctor() -> bool:
    async with container:
        report = await container.check_health(timeout=5)
    for one in report.dependencies:
        print(one.status, one.name, one.where, one.error or "")
    return report.status == "pass"
