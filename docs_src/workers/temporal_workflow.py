import asyncio
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from .temporal_activities import classify, list_documents


@workflow.defn
class ClassifyProject:
    @workflow.run
    async def run(self, project: str) -> list[str]:
        names = await workflow.execute_activity(
            list_documents,
            project,
            start_to_close_timeout=timedelta(hours=1),
            heartbeat_timeout=timedelta(seconds=30),
        )
        limit = timedelta(minutes=10)
        classified = (
            workflow.execute_activity(classify, name, start_to_close_timeout=limit)
            for name in names
        )
        return await asyncio.gather(*classified)
