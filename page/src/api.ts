import { t } from './i18n'

/** The server's public routes (docs/serve.md), as far as the page uses them. Paths are relative to the page. */

export interface Model {
  name: string
  bytes: number
  hash?: string
  size?: [number, number]
  task?: string
  defaults?: { steps?: number; guidance_scale?: number }
  sampler?: string
  xl?: boolean
  words?: string[] // all that it knows, where these are few
  examples?: string[]
}

export interface ServerInfo {
  version: string
  ready: boolean
  default_model: string
  models: Model[]
  samplers: { id: string; label: string }[]
  schedules: string[]
  hints: string[]
  /** What can be asked for, and what it is where nothing is said (null: the model decides). */
  settings: Record<string, unknown>
  limits: { body: number; pixels: number; side: number; steps: number; prompt: number; n: number }
  key: string | null
  keys_needed: boolean
  queue: Record<string, number>
}

export type State = 'queued' | 'running' | 'finished' | 'failed' | 'cancelled'

export interface Job {
  id: string
  state: State
  position: number | null
  step: number
  steps: number
  request: Record<string, unknown> & { prompt?: string }
  loras: { name: string; scale: number; text_scale: number | null }[]
  controls: { net: string; scale: number; start: number; stop: number; guess: boolean; hint: string | null }[]
  upscale: { scale?: number } | null
  /** Pictures that it is made from: role -> SHA-256. */
  inputs: Record<string, string>
  model: string
  images: { id: string; index: number; seed: string; width: number; height: number; warnings: string[] }[]
  n: number
  error: string | null
  created: number
  seconds: number
}

export interface Picture {
  id: string
  job: string
  seed: string
  width: number
  height: number
  prompt: string
  model: string | null
  created: number
  pinned: boolean
  rating: number | null
  tags: string[]
  gone: boolean
  warnings: string[]
}

export type Recipe = Record<string, unknown>
export type PictureInfo = Picture & { recipe: Recipe; infotext: string }

export interface Imported {
  source: string
  width: number
  height: number
  recipe: Recipe
  ignored: unknown
  warnings: string[]
}

export interface Adapter {
  name: string
  use: string
  title: string | null
  words: string[]
  fits: boolean | null
  why: string | null
}

export interface Adapters {
  loras: Adapter[]
  embeddings: Adapter[]
  controlnets: { name: string }[]
  reading: number
}

export interface Explained {
  room?: number
  parts?: { texts: { chunks: { text: string; weight: number }[][] }[] }[]
}

/** What the server refused: its one sentence, and the field it is about. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    sentence: string,
    readonly field: string | null = null,
  ) {
    super(sentence)
  }
}

async function ask(method: string, path: string, body?: unknown): Promise<Response> {
  const form = body instanceof FormData || body instanceof Blob
  let answer: Response
  try {
    answer = await fetch(path, {
      method,
      credentials: 'same-origin',
      headers: body === undefined || form ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? null : form ? body : JSON.stringify(body),
    })
  } catch {
    throw new Problem(0, t('lost'))
  }
  if (answer.ok) return answer
  const told = await answer.json().catch(() => ({}))
  throw new Problem(answer.status, told.detail ?? `${answer.status} ${answer.statusText}`, told.field ?? null)
}

const json = async <T>(method: string, path: string, body?: unknown): Promise<T> => (await ask(method, path, body)).json()

export const api = {
  server: () => json<ServerInfo>('GET', 'api/server'),
  draw: (body: object | FormData) => json<Job>('POST', 'api/jobs', body),
  rerun: (id: string, changes: object) => json<Job>('POST', `api/jobs/${id}/rerun`, { changes }),
  job: (id: string) => json<Job>('GET', `api/jobs/${id}`),
  cancel: (id: string) => json<Job>('DELETE', `api/jobs/${id}`),
  cancelQueued: () => json<object>('DELETE', 'api/jobs?state=queued'),
  pictures: (query: Record<string, string>) =>
    json<{ images: Picture[]; next: string | null }>('GET', `api/images?${new URLSearchParams(query)}`),
  picture: (id: string) => json<PictureInfo>('GET', `api/images/${id}`),
  change: (id: string, values: object) => json<Picture>('PATCH', `api/images/${id}`, values),
  remove: (id: string) => json<{ undo_seconds: number }>('DELETE', `api/images/${id}`),
  /** A picture that was sent; null where the server has it no longer. */
  input: async (sha256: string): Promise<Blob | null> => {
    const answer = await fetch(inputAt(sha256), { credentials: 'same-origin' })
    return answer.ok ? answer.blob() : null
  },
  import: (file: Blob) => json<Imported>('POST', 'api/images/import', file),
  adapters: (model = '') => json<Adapters>('GET', `api/adapters?${new URLSearchParams(model ? { model } : {})}`),
  explain: (prompt: string, model: string) => json<Explained>('POST', 'api/explain', model ? { prompt, model } : { prompt }),
  hint: async (kind: string, image: string) => (await ask('POST', 'api/hints', { kind, image })).blob(),
  preferences: () => json<Record<string, unknown>>('GET', 'api/preferences'),
  prefer: (values: object) => json<object>('PUT', 'api/preferences', values),
  signIn: (key: string) => json<object>('POST', 'api/session', { key }),
  signOut: () => json<object>('DELETE', 'api/session'),
}

export const fileOf = (id: string) => `api/images/${id}/file`
export const inputAt = (sha256: string) => `api/inputs/${sha256}`
export const thumbOf = (id: string) => `api/images/${id}/thumb`
