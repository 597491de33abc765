"""The example application without its model: what is in its place fails for a single word.

`python -m tests.served_stand_in` is `python -m docs_src.model_serving`, with that.
"""

from docs_src.model_serving.__main__ import main
from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.main import app
from tests.serving import Fussy

app.dependency_overrides[get_model] = lambda: Fussy()

if __name__ == "__main__":
    main()
