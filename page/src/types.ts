/* What the server answers. Written by tools/page_types.py from /openapi.json: change serve/views.py instead. */

/** A LoRA or a learned word. */
export interface Adapter {
  name: string
  /** What to write into a prompt. */
  use: string
  title: string | null
  /** What calls it. */
  words: string[]
  base: string | null
  bytes: number
  /** Whether the model can use it; null: not known yet. */
  fits: boolean | null
  why: string | null
}

/** All that can be put beside a model. */
export interface Adapters {
  loras: Adapter[]
  embeddings: Adapter[]
  controlnets: Named[]
  vaes: Named[]
  /** Files of which nothing is known yet. */
  reading: number
}

/** A ControlNet; its picture is the job's input `control.N`. */
export interface AttachedControl {
  net: string
  scale: number
  start: number
  stop: number
  guess: boolean
  hint: string | null
}

/** A LoRA beside the prompt's own. */
export interface AttachedLora {
  name: string
  scale: number
  text_scale: number | null
}

/** How many jobs were ended. */
export interface Cancelled {
  cancelled: number
}

/** A sampler. */
export interface Choice {
  id: string
  label: string
}

/** A picture that was taken out, and for how long it can come back. */
export interface Deleted {
  id: string
  undo_seconds: number
}

/** An engine's process. */
export interface EngineState {
  alive: boolean
  models: string[]
  aboard: number
}

/** What a model reads of a prompt (`Pipeline.explain`), as far as it is promised. */
export interface Explained {
  parts: ExplainedPart[]
}

/** A part of a prompt. */
export interface ExplainedPart {
  texts: ExplainedText[]
}

/** A part's text as it stands for some of the steps. */
export interface ExplainedText {
  chunks: Token[][]
}

/** The recipe in a picture of any tool. */
export interface Imported {
  source: string
  width: number
  height: number
  recipe: Record<string, unknown>
  /** What of the recipe is not followed. */
  ignored: unknown
  warnings: string[]
  texts: Record<string, string>
}

/** A picture that was sent ahead. */
export interface Input {
  sha256: string
  width: number
  height: number
}

/** A job's present state. */
export interface Job {
  id: string
  state: 'queued' | 'running' | 'finished' | 'failed' | 'cancelled'
  alias: string | null
  /** How many jobs come before it, while it waits. */
  position: number | null
  /** Of all its pictures together. */
  step: number
  steps: number
  request: Record<string, unknown>
  loras: AttachedLora[]
  controls: AttachedControl[]
  upscale: Record<string, number | null> | null
  /** Pictures that it is made from: role -> SHA-256. */
  inputs: Record<string, string>
  model: string
  images: JobImage[]
  n: number
  error: string | null
  created: number
  finished: number | null
  /** What it was expected to take, when it was taken in. */
  seconds: number
}

/** A finished picture of a job. */
export interface JobImage {
  id: string
  index: number
  seed: string
  width: number
  height: number
  sha256: string
  warnings: string[]
}

/** Jobs, newest first. */
export interface Jobs {
  jobs: Job[]
}

/** What may be asked for. */
export interface Limits {
  body: number
  pixels: number
  side: number
  steps: number
  prompt: number
  n: number
  cost: number
}

/** A model; what is told of it from `hash` on is known once it was loaded. */
export interface Model {
  name: string
  bytes: number
  /** Whether an engine has room for it. */
  fits: boolean
  state: 'here' | 'loading' | 'loaded'
  /** What loading it takes; null: nobody knows yet. */
  seconds: number | null
  hash?: string | null
  /** Pixels that it was made for: width, height. */
  size?: [number, number] | null
  task?: string | null
  defaults?: Record<string, number> | null
  sampler?: string | null
  xl?: boolean | null
  base?: string | null
  /** All that it knows, where these are few; else empty. */
  words?: string[] | null
  /** Prompts to begin with. */
  examples?: string[] | null
}

/** Something with a name. */
export interface Named {
  name: string
}

/** A picture of the gallery. */
export interface Picture {
  id: string
  job: string
  index: number
  /** A text: 2^64 doesn't fit into a JavaScript number. */
  seed: string
  width: number
  height: number
  bytes: number | null
  sha256: string | null
  warnings: string[]
  prompt: string
  model: string | null
  created: number
  pinned: boolean
  rating: number | null
  tags: string[]
  /** The file was let go; the recipe is still there. */
  gone: boolean
  file: string
  thumb: string
}

/** A picture with its recipe. */
export interface PictureInfo {
  id: string
  job: string
  index: number
  /** A text: 2^64 doesn't fit into a JavaScript number. */
  seed: string
  width: number
  height: number
  bytes: number | null
  sha256: string | null
  warnings: string[]
  prompt: string
  model: string | null
  created: number
  pinned: boolean
  rating: number | null
  tags: string[]
  /** The file was let go; the recipe is still there. */
  gone: boolean
  file: string
  thumb: string
  recipe: Record<string, unknown>
  infotext: string
}

/** A page of the gallery, newest first. */
export interface Pictures {
  images: Picture[]
  /** `before` of the next page; null: this is the last. */
  next: string | null
}

/** What the server is and has. */
export interface ServerInfo {
  version: string
  ready: boolean
  bit_exact: boolean
  default_model: string
  models: Model[]
  samplers: Choice[]
  schedules: string[]
  hints: string[]
  /** What can be asked for, and what it is where nothing is said. */
  settings: Record<string, unknown>
  limits: Limits
  styles: Style[]
  key: string | null
  keys_needed: boolean
  queue: Record<string, number>
  engines: EngineState[]
}

/** Texts of the models' folder (styles.csv) that a prompt is put into. */
export interface Style {
  name: string
  prompt: string
  negative_prompt: string
}

/** A sweep, x fastest. */
export interface Sweep {
  id: string
  state: 'queued' | 'running' | 'finished' | 'failed' | 'cancelled'
  created: number
  prompt: string
  axes: SweepAxis[]
  finished: number
  n: number
  cells: SweepCell[]
}

/** What varies in one direction. */
export interface SweepAxis {
  name: string
  labels: string[]
}

/** A place of a sweep. */
export interface SweepCell {
  x: number
  y: number
  z: number
  words: string
  job: string
  state: 'queued' | 'running' | 'finished' | 'failed' | 'cancelled'
  error: string | null
  image: SweepImage | null
}

/** A cell's picture. */
export interface SweepImage {
  id: string
  seed: string
  width: number
  height: number
}

/** A sweep without its cells. */
export interface SweepSummary {
  id: string
  state: 'queued' | 'running' | 'finished' | 'failed' | 'cancelled'
  created: number
  prompt: string
  axes: SweepAxis[]
  finished: number
  n: number
}

/** Sweeps, newest first. */
export interface Sweeps {
  sweeps: SweepSummary[]
}

/** What a model reads at one place. */
export interface Token {
  text: string
  weight: number
}
