from fastapi_lifespan_deps import LifespanFastAPI

from . import reviews, users

app = LifespanFastAPI()
app.include_router(users.router)
app.include_router(reviews.router)
