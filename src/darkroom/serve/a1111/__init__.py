"""A1111's dialect: what its clients call, with its names, defaults and answers.

`fields` has the names, `asked` makes a job of them, `draw` answers it; `controlnet` is the extension's part.
"""

from __future__ import annotations

from . import controlnet, draw, extras, lists, options, progress

ROUTERS = (draw.router, progress.router, extras.router, options.router, lists.router, controlnet.router)
