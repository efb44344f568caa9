"""Progress bars: widgets in notebooks if ipywidgets is installed, text elsewhere."""

from importlib.util import find_spec
from typing import Any

if find_spec("ipywidgets") is not None:
    from tqdm.auto import tqdm as _tqdm
else:  # without ipywidgets, tqdm.auto would warn in every notebook
    from tqdm import tqdm as _tqdm


class tqdm(_tqdm):  # type: ignore[misc] # tqdm has no types
    """A bar that is drawn at every update, but at most ten times in a second.

    By default, tqdm skips as many updates as were made in a tenth of a second. When the updates become slower, the bar
    stands still for up to ten seconds.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"miniters": 1, **options})

    def advance_to(self, done: float) -> None:
        """Show that ``done`` steps of the total are done. Parts of a step are not shown."""
        self.update(int(done + 1e-6) - self.n)
