import logging

logging.basicConfig()
logging.getLogger("fastapi_lifespan_deps").setLevel(logging.DEBUG)
