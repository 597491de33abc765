class Pool:
    """Stands for the connection pool of your database driver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_open = True

    async def fetch_user(self, user_id: int) -> str:
        if not self.is_open:
            raise RuntimeError("the pool is closed")
        return f"user {user_id} of {self.url}"

    async def close(self) -> None:
        self.is_open = False


async def connect(url: str) -> Pool:
    return Pool(url)
