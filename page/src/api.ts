import { t } from './i18n'
import type { Adapters, Cancelled, Deleted, Explained, Imported, Job, Picture, PictureInfo, Pictures, ServerInfo, Sweep, Sweeps } from './types'

/** The server's public routes (docs/serve.md), as far as the page uses them. Paths are relative to the page. */

export type * from './types'
export type Recipe = Record<string, unknown>
export type State = Job['state']

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
  const file = body instanceof Blob
  let answer: Response
  try {
    answer = await fetch(path, {
      method,
      credentials: 'same-origin',
      headers: body === undefined || file ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? null : file ? body : JSON.stringify(body),
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
  draw: (body: object) => json<Job>('POST', 'api/jobs', body),
  rerun: (id: string, changes: object) => json<Job>('POST', `api/jobs/${id}/rerun`, { changes }),
  job: (id: string) => json<Job>('GET', `api/jobs/${id}`),
  cancel: (id: string) => json<Job>('DELETE', `api/jobs/${id}`),
  cancelQueued: () => json<Cancelled>('DELETE', 'api/jobs?state=queued'),
  pictures: (query: Record<string, string>) =>
    json<Pictures>('GET', `api/images?${new URLSearchParams(query)}`),
  picture: (id: string) => json<PictureInfo>('GET', `api/images/${id}`),
  change: (id: string, values: object) => json<Picture>('PATCH', `api/images/${id}`, values),
  remove: (id: string) => json<Deleted>('DELETE', `api/images/${id}`),
  /** A picture that was sent; null where the server has it no longer. */
  input: async (sha256: string): Promise<Blob | null> => {
    const answer = await fetch(inputAt(sha256), { credentials: 'same-origin' })
    return answer.ok ? answer.blob() : null
  },
  import: (file: Blob) => json<Imported>('POST', 'api/images/import', file),
  adapters: (model = '') => json<Adapters>('GET', `api/adapters?${new URLSearchParams(model ? { model } : {})}`),
  explain: (prompt: string, model: string) => json<Explained>('POST', 'api/explain', model ? { prompt, model } : { prompt }),
  sweep: (body: object) => json<Sweep>('POST', 'api/sweeps', body),
  sweeps: () => json<Sweeps>('GET', 'api/sweeps?limit=20'),
  oneSweep: (id: string) => json<Sweep>('GET', `api/sweeps/${id}`),
  cancelSweep: (id: string) => json<Sweep>('DELETE', `api/sweeps/${id}`),
  hint: async (kind: string, image: string) => (await ask('POST', 'api/hints', { kind, image })).blob(),
  preferences: () => json<Record<string, unknown>>('GET', 'api/preferences'),
  prefer: (values: object) => json<object>('PUT', 'api/preferences', values),
  signIn: (key: string) => json<object>('POST', 'api/session', { key }),
  signOut: () => json<object>('DELETE', 'api/session'),
}

export const fileOf = (id: string) => `api/images/${id}/file`
export const inputAt = (sha256: string) => `api/inputs/${sha256}`
export const sheetOf = (id: string) => `api/sweeps/${id}/sheet`
export const thumbOf = (id: string) => `api/images/${id}/thumb`
