"""An image server: many people, one model, nothing lost. `darkroom serve` runs it (docs/serve.md). No torch here.

The web process (`server`, `app`) takes requests in, keeps them in a database (`queue`) and hands them to engine
processes (`dispatcher`), which draw them (`engine_process`, the only module of this room that imports torch).
"""
