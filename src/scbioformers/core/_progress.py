"""Progress bars: widgets in notebooks if ipywidgets is installed, text elsewhere."""

from importlib.util import find_spec

if find_spec("ipywidgets") is not None:
    from tqdm.auto import tqdm
else:  # without ipywidgets, tqdm.auto would warn in every notebook
    from tqdm import tqdm

__all__ = ["tqdm"]
