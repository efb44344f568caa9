"""Progress bars: widgets in notebooks that have them, text elsewhere."""

from importlib.util import find_spec

if find_spec("ipywidgets") is not None:
    from tqdm.auto import tqdm
else:  # tqdm.auto warns of the missing package in every notebook
    from tqdm import tqdm

__all__ = ["tqdm"]
